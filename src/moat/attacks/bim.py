"""Basic iterative method. Source: Kurakin et al., arXiv 1607.02533."""

import torch

from moat.attacks.parts.checks import check_batch, check_budget, check_iterations
from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import ascend, frozen


def bim(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, *, eps: float, step_size: float, steps: int
) -> torch.Tensor:
    """``steps`` signed steps up the cross-entropy from the clean images, projected to the eps-ball and [0,1].

    ``eps`` and ``step_size`` are in pixel units (0 to 1).

    Raises:
        ConfigError: a parameter out of range.
        ValueError: images outside [0,1] or labels that do not fit.
        MoatError: a gradient that is not a number.
    """
    check_budget(eps=eps, step_size=step_size)
    check_iterations(steps=steps)
    check_batch(x, y)
    with frozen(model):
        return ascend(model, x, x, cross_entropy(y), eps=eps, step_size=step_size, steps=steps)
