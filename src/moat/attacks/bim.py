"""Basic iterative method. Source: Kurakin et al., arXiv 1607.02533."""

import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.spaces import PIXELS, Space
from moat.attacks.parts.steps import ascend

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "step_size": {"type": "distance", "description": "length of one signed step"},
    "steps": {"type": "count", "description": "number of steps"},
}


@attack(PARAMETERS)
def bim(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    space: Space = PIXELS,
) -> torch.Tensor:
    """``steps`` signed steps on the cross-entropy from the clean images, projected after each; PGD without its start.

    Args: (eps and step_size in units of the space: pixels in [0,1])
        space: where the attack works; what is returned is in pixel units.
    """
    z = space.encode(x)
    bounds = space.bounds(z, eps)
    z_adv = ascend(space.view(model), z, cross_entropy(y), bounds, step_size=step_size, steps=steps)
    return space.decode(z_adv)
