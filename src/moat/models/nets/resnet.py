"""ResNet for small images: post-activation basic blocks after a 3x3 stem without pooling.

Source: He et al., Deep Residual Learning, arXiv 1512.03385, with the stem customary for CIFAR.
"""

import functools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.nets.classifier import Classifier, conv1x1, conv3x3, global_average, scale_channels

STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_STRIDES = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input (through a 1x1 conv and BN where the shape changes), then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNetTrunk(nn.Module):
    """Images (B, C, H, W) to features (B, 512 * width)."""

    def __init__(self, depths: Sequence[int], *, width: float, in_channels: int):
        super().__init__()
        channels = [scale_channels(value, width) for value in STAGE_CHANNELS]
        self.stem = nn.Sequential(conv3x3(in_channels, channels[0]), nn.BatchNorm2d(channels[0]), nn.ReLU())
        blocks = []
        previous = channels[0]
        for depth, out_channels, stride in zip(depths, channels, STAGE_STRIDES, strict=True):
            for index in range(depth):
                blocks.append(BasicBlock(previous, out_channels, stride if index == 0 else 1))
                previous = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.num_features = previous

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return global_average(self.blocks(self.stem(x)))


def resnet(num_classes: int, *, depths: Sequence[int], width: float, image_size: int, in_channels: int) -> Classifier:
    """A ResNet with ``depths`` blocks in its four stages; any image size."""
    trunk = ResNetTrunk(depths, width=width, in_channels=in_channels)
    return Classifier(trunk, trunk.num_features, num_classes)


NETS = {
    "resnet18": functools.partial(resnet, depths=(2, 2, 2, 2)),
    "resnet34": functools.partial(resnet, depths=(3, 4, 6, 3)),
}
