"""Wide residual networks.

Source: Zagoruyko and Komodakis, arXiv 1605.07146. Pre-activation blocks; where a block changes the shape,
its 1x1 shortcut starts from the activated input. No dropout.
"""

import functools

from moat.base.errors import ConfigError
from moat.models.nets.classifier import Classifier
from moat.models.nets.preact_resnet import PreActTrunk

STEM_CHANNELS = 16
GROUP_STRIDES = (1, 2, 2)


def wide_resnet(
    num_classes: int, *, depth: int, widen: int, width: float, image_size: int, in_channels: int
) -> Classifier:
    """WRN-``depth``-``widen``; ``width`` scales it further, its stem included. Any image size.

    Raises:
        ConfigError: ``depth`` is not 6n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(f"depth: {depth} is not allowed; 6n + 4 for a whole n from 1, e.g. 28")
    blocks = (depth - 4) // 6
    groups = [STEM_CHANNELS * widen * factor for factor in (1, 2, 4)]
    trunk = PreActTrunk((blocks,) * 3, STEM_CHANNELS, groups, GROUP_STRIDES, width=width, in_channels=in_channels)
    return Classifier(trunk, trunk.num_features, num_classes)


NETS = {"wrn-28-10": functools.partial(wide_resnet, depth=28, widen=10)}
