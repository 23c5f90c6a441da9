"""Projected gradient descent, L-infinity. Source: Madry et al., arXiv 1706.06083."""

from typing import Literal

import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.cascade import with_restarts
from moat.attacks.parts.objectives import make_objective
from moat.attacks.parts.spaces import PIXELS, Space
from moat.attacks.parts.steps import Randomness, ascend
from moat.base.errors import ConfigError

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "step_size": {"type": "distance", "description": "length of one signed step"},
    "steps": {"type": "count", "description": "number of steps"},
    "restarts": {"type": "count", "description": "independent starts, the worst kept per example"},
    "random_start": {
        "enum": [True, False, "uniform", "normal"],
        "description": "true or uniform: in the ball; normal: x + 0.001 N(0,1); false: at x",
    },
    "loss": {"enum": ["ce", "margin", "kl"], "description": "what is maximized"},
    "eot": {"type": "count", "description": "forward passes over which each gradient is averaged"},
}


@attack(PARAMETERS)
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
    space: Space = PIXELS,
) -> torch.Tensor:
    """``steps`` signed steps on ``loss`` from a random start, each projected to the eps-ball around ``x`` and to [0,1].

    Args: (eps and step_size in units of the space: pixels in [0,1])
        restarts: independent starts; each example keeps its first success, else its highest loss.
        random_start: True or "uniform" (in the ball), "normal" (x + 0.001 N(0,1), as TRADES trains), or False.
        loss: "ce" cross-entropy with ``y``; "margin" max_{k != y} z_k - z_y; "kl" KL(p(x) || p(x_adv)), the
            clean logits computed once.
        eot: forward passes over which each gradient is averaged (for models that draw random numbers).
        generator: one; or one per example, which makes results independent of the batch; or None (global numbers).
        space: where the attack works; what is returned is in pixel units.

    Raises ConfigError (parameter out of range; "kl" without a random start, where its gradient is 0), ValueError
    (images outside [0,1], labels that do not fit) or MoatError (a gradient that is not a number).
    """
    if loss == "kl" and random_start is False:
        raise ConfigError("random_start: False is not allowed with loss 'kl', whose gradient at the clean image is 0")

    def single_run(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
        z = space.encode(x)
        start, bounds = space.start(z, eps, random_start, generator), space.bounds(z, eps)
        objective = make_objective(loss, model, x, y)
        z_adv = ascend(space.view(model), start, objective, bounds, step_size=step_size, steps=steps, eot=eot)
        return space.decode(z_adv)

    return with_restarts(single_run, restarts, model, x, y, loss, generator)
