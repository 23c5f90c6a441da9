"""Views of a mixture: differentiable substitutes whose loss an attack maximizes instead of the mixture's own.

A view answers "what would the logits be if …": the route were fixed, the gate were soft, one expert decided alone. A
mixture names its views in a method ``attack_views() -> {name: view}``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class View:
    """``module``: images (B, C, H, W) to logits (B, K'); ``labels``: the labels (B,) to lead those logits away from."""

    module: nn.Module
    labels: Callable[[torch.Tensor], torch.Tensor] = torch.clone


class ComputedView(nn.Module):
    """What ``function(model, x)`` computes with the parts of a model; parameters and modes are the model's own."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model = model
        self.function = function
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.model, x)
