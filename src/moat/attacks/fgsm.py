"""Fast gradient sign method. Source: Goodfellow et al., arXiv 1412.6572."""

import torch

from moat.attacks.parts.checks import check_batch, check_budget
from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import ascend, frozen


def fgsm(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, *, eps: float) -> torch.Tensor:
    """One signed step of size ``eps`` (0 to 1, pixels are in [0,1]) up the cross-entropy, from the clean images.

    Raises:
        ConfigError: ``eps`` out of range.
        ValueError: images outside [0,1] or labels that do not fit.
        MoatError: a gradient that is not a number.
    """
    check_budget(eps=eps)
    check_batch(x, y)
    with frozen(model):
        return ascend(model, x, x, cross_entropy(y), eps=eps, step_size=eps, steps=1)
