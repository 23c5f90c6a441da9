"""Projected gradient descent, L-infinity. Source: Madry et al., arXiv 1706.06083."""

from typing import Literal

import torch

from moat.attacks.parts.checks import check_batch, check_budget, check_choice, check_iterations
from moat.attacks.parts.objectives import OBJECTIVES, make_objective
from moat.attacks.parts.restarts import worst_of
from moat.attacks.parts.steps import STARTS, Randomness, ascend, frozen, random_start_point
from moat.base.errors import ConfigError


def pgd(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    restarts: int = 1,
    random_start: bool | Literal["uniform", "normal"] = True,
    loss: Literal["ce", "margin", "kl"] = "ce",
    eot: int = 1,
    generator: Randomness = None,
) -> torch.Tensor:
    """``steps`` signed steps up ``loss``, projected to the eps-ball around ``x`` and to [0,1] after each.

    Args: (eps and step_size in pixel units, 0 to 1)
        restarts: independent starts; each example keeps its first success, else its highest loss.
        random_start: True or "uniform" (in the ball), "normal" (x + 0.001 N(0,1), as TRADES trains), or False.
        loss: "ce" cross-entropy with ``y``; "margin" max_{k != y} z_k - z_y; "kl" KL(p(x) || p(x_adv)), the
            clean logits computed once.
        eot: forward passes over which each gradient is averaged (for models that draw random numbers).
        generator: one; or one per example, which makes results independent of the batch; or None (global numbers).

    Raises ConfigError (parameter out of range; "kl" without a random start, where its gradient is 0), ValueError
    (images outside [0,1], labels that do not fit) or MoatError (a gradient that is not a number).
    """
    check_budget(eps=eps, step_size=step_size)
    check_iterations(steps=steps, restarts=restarts, eot=eot)
    check_choice(random_start=(random_start, STARTS), loss=(loss, OBJECTIVES))
    if loss == "kl" and not random_start:
        raise ConfigError("random_start: False is not allowed with loss 'kl', whose gradient at the clean image is 0")
    check_batch(x, y, generator)

    def once(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
        start, objective = random_start_point(x, eps, random_start, generator), make_objective(loss, model, x, y)
        return ascend(model, x, start, objective, eps=eps, step_size=step_size, steps=steps, eot=eot)

    with frozen(model):
        return worst_of(once, restarts, model, x, y, loss, generator)
