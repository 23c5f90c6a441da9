"""PGD on the margin of the logits: what adversarial training papers call "CW" in the L-infinity ball.

Source: Carlini and Wagner, arXiv 1608.04644, f6, climbed by PGD; the bound of the margin as in the released code of
friendly adversarial training (Zhang et al., ICML 2020), which takes 50.
"""

import torch

from moat.attacks.parts.checks import check_batch, check_budget, check_iterations
from moat.attacks.parts.objectives import Objective, margin
from moat.attacks.parts.restarts import worst_of
from moat.attacks.parts.steps import Randomness, ascend, frozen, random_start_point
from moat.base.errors import ConfigError


def cw_inf(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float = 2 / 255,
    steps: int = 30,
    kappa: float = 50.0,
    restarts: int = 1,
    random_start: bool = True,
    generator: Randomness = None,
) -> torch.Tensor:
    """``steps`` signed steps up min(max_{k != y} z_k - z_y, kappa), in the eps-ball and [0,1].

    ``eps`` and ``step_size`` are in pixel units. An example whose margin is above ``kappa`` (0 or more, in units of
    logits) is not moved further.

    Raises:
        ConfigError: a parameter out of range.
        ValueError: images outside [0,1] or labels that do not fit.
        MoatError: a gradient that is not a number.
    """
    check_budget(eps=eps, step_size=step_size)
    check_iterations(steps=steps, restarts=restarts)
    if not kappa >= 0:
        raise ConfigError(f"kappa: {kappa!r} is not allowed; a number from 0")
    check_batch(x, y, generator)

    def once(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
        start = random_start_point(x, eps, random_start, generator)
        return ascend(model, x, start, _bounded(margin(y), kappa), eps=eps, step_size=step_size, steps=steps)

    with frozen(model):
        return worst_of(once, restarts, model, x, y, "margin", generator)


def _bounded(objective: Objective, bound: float) -> Objective:
    return lambda logits: objective(logits).clamp(max=bound)
