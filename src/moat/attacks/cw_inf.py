"""PGD on the margin of the logits: what adversarial training papers call "CW" in the L-infinity ball.

Source: Carlini and Wagner, arXiv 1608.04644, f6, maximized by PGD; the bound of the margin as in the released code of
friendly adversarial training (Zhang et al., ICML 2020), which takes 50.
"""

import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.cascade import with_restarts
from moat.attacks.parts.objectives import margin
from moat.attacks.parts.steps import Randomness, ascend, ball, random_start_point

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "step_size": {"type": "distance", "description": "length of one signed step"},
    "steps": {"type": "count", "description": "number of steps"},
    "kappa": {"type": "number", "minimum": 0, "description": "the margin counts up to here; 50 by default"},
    "restarts": {"type": "count", "description": "independent starts, the worst kept per example"},
    "random_start": {"enum": [True, False, "uniform", "normal"], "description": "as for pgd"},
}


@attack(PARAMETERS)
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
    """``steps`` signed steps on min(max_{k != y} z_k - z_y, kappa), in the eps-ball and [0,1].

    ``eps`` and ``step_size`` are in pixel units. An example whose margin is above ``kappa`` (in units of logits) is
    not moved further. With a ``kappa`` that no margin reaches this is ``pgd(…, loss="margin")``.
    """

    def single_run(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
        start = random_start_point(x, eps, random_start, generator)
        return ascend(model, start, margin(y, bound=kappa), ball(x, eps), step_size=step_size, steps=steps)

    return with_restarts(single_run, restarts, model, x, y, "margin", generator)
