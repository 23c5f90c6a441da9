"""No attack: the clean images, so that clean accuracy is a setting like any other."""

import torch

from moat.attacks.parts.arguments import attack

PARAMETERS = {}
# Passes through the net for one image, beside those that score the result.
PASSES = 0


@attack(PARAMETERS)
def none(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A copy of ``x``."""
    return x.clone()
