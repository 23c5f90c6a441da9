"""No attack but a common corruption (noise, blur, weather, …): corrupted accuracy is a setting like any other."""

from collections.abc import Sequence

import numpy as np
import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.steps import Randomness
from moat.data.corruptions.generate import corrupt_with_keys

PARAMETERS = {
    "corruption": {"type": "string", "description": "a name of moat.data.corruptions.severities"},
    "severity": {"enum": [1, 2, 3, 4, 5], "description": "1 to 5"},
    "severities": {"enum": ["cifar10-c", "imagenet-c"], "description": "whose parameters each severity has"},
}
# Passes through the net for one image, beside those that score the result.
PASSES = 0


@attack(PARAMETERS)
def corruption(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    corruption: str,
    severity: int,
    severities: str = "cifar10-c",
    generator: Randomness = None,
) -> torch.Tensor:
    """The images rounded to bytes, corrupted, as floating point again; see :func:`moat.data.corruptions.corrupt`.

    With a generator per image, an image's random numbers depend on that generator's initial seed alone. So the
    evaluation under the setting ``fog-3`` is about the images of ``corrupt(images, "fog", 3, seed=…)``.

    Raises:
        ConfigError: unknown corruption, severity or severities.
        DataError: images that are not square, or neither grey nor coloured.
    """
    if isinstance(generator, Sequence):
        keys = [each.initial_seed() for each in generator]
    else:
        device = "cpu" if generator is None else generator.device
        keys = torch.randint(2**63 - 1, (len(x),), generator=generator, device=device).tolist()
    pixels = (x.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    found = corrupt_with_keys(
        np.ascontiguousarray(pixels.cpu().numpy()), corruption, severity, keys=keys, severities=severities
    )
    result = torch.from_numpy(found).to(x.device).permute(0, 3, 1, 2)
    return torch.empty_like(x).copy_(result).div_(255)
