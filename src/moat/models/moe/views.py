"""Views of a mixture: differentiable stand-ins that an attack maximizes its loss on instead of the mixture itself.

A view answers what the logits would be if the routes were fixed, the weights were soft, or one expert decided alone: no
single gradient of a routed model can be trusted. A mixture names its views in ``attack_views() -> {name: module or
View}``; whether an attack succeeds is always decided by the mixture itself (:mod:`moat.attacks.parts.views`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

SOFT, AVERAGE = "soft", "average"


@dataclass(frozen=True)
class View:
    """A view whose logits are not over the model's own classes.

    Attributes:
        module: images (B, C, H, W) to logits (B, K').
        labels: from the model's labels (B,) to those that an attack shall lead these logits away from.
    """

    module: nn.Module
    labels: Callable[[torch.Tensor], torch.Tensor] = torch.clone


class Computed(nn.Module):
    """The logits that ``function(model, x)`` computes with the parts of a model."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model = model
        self.function = function
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.model, x)


def average(model: nn.Module) -> Computed:
    """The mean of the logits of ``model.experts``: every expert contributes to the gradient, whatever its weight."""
    return Computed(model, lambda model, x: torch.stack([expert(x) for expert in model.experts]).mean(0))


def experts_alone(model: nn.Module) -> dict[str, nn.Module]:
    """Each of ``model.experts`` as a view: ``expert0``, ``expert1``, …"""
    return {f"expert{e}": expert for e, expert in enumerate(model.experts)}
