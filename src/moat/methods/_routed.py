"""Shared by the methods whose mixtures run an expert on its own images only: in some batches an expert has none."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from moat.attacks import pgd
from moat.methods.base import AdversarialMethod, Step


class RoutedTraining(AdversarialMethod):
    """A method that steps on what the batch's images went through: an expert without any keeps its weights."""

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        super().__init__(model, recipe, autocast=autocast)
        for optimizer in self.optimizers.values():
            start_momentum(optimizer)

    def against(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, step: Step, purpose: str) -> torch.Tensor:
        """PGD on the cross-entropy of ``model``."""
        return pgd(model, x, y, loss="ce", generator=step.generator(purpose), space=self.space, **self.attack)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let SGD's momentum begin at 0, which changes no step.

    The fused step fails where some parameters have been stepped on before and others, at their first gradient, have
    not.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
