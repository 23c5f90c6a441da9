"""No attack: the clean images, so that clean accuracy is a setting like any other."""

import torch

from moat.attacks.parts.checks import check_batch


def none(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A copy of ``x``.

    Raises:
        ValueError: images outside [0,1] or labels that do not fit.
    """
    check_batch(x, y)
    return x.clone()
