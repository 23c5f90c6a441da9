"""Fast gradient sign method. Source: Goodfellow et al., arXiv 1412.6572."""

import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.spaces import PIXELS, Space
from moat.attacks.parts.steps import ascend

PARAMETERS = {"eps": {"type": "distance", "description": "radius of the L-infinity ball"}}
# Passes through the net for one image: one forward, one back.
PASSES = 2


@attack(PARAMETERS)
def fgsm(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, *, eps: float, space: Space = PIXELS
) -> torch.Tensor:
    """One signed step of size ``eps`` on the cross-entropy, from the clean images.

    Args: (eps in units of the space: pixels in [0,1])
        space: where the step is taken; what is returned is in pixel units.
    """
    z = space.encode(x)
    z_adv = ascend(space.view(model), z, cross_entropy(y), space.bounds(z, eps), step_size=eps, steps=1)
    return space.decode(z_adv)
