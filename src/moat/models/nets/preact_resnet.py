"""Pre-activation ResNet for small images.

Source: He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027. Shortcuts are 1x1
convolutions without batch norm, taken from the pre-activated tensor; a batch norm and ReLU close the trunk.
"""

import functools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.nets.classifier import Classifier, conv1x1, conv3x3, global_average, scale_channels

STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_STRIDES = (1, 2, 2, 2)


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus the shortcut.

    A shortcut whose shape changes starts from the activated input; an unchanged one is the raw input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = conv1x1(in_channels, out_channels, stride) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class PreActTrunk(nn.Module):
    """Images (B, C, H, W) to features (B, D): stem, stages of pre-activation blocks, BN-ReLU, global mean."""

    def __init__(
        self,
        depths: Sequence[int],
        stem_channels: int,
        stage_channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: float,
        in_channels: int,
    ):
        super().__init__()
        previous = scale_channels(stem_channels, width)
        self.stem = conv3x3(in_channels, previous)
        blocks = []
        for depth, channels, stride in zip(depths, stage_channels, strides, strict=True):
            for index in range(depth):
                blocks.append(PreActBlock(previous, scale_channels(channels, width), stride if index == 0 else 1))
                previous = scale_channels(channels, width)
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(previous)
        self.num_features = previous

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return global_average(F.relu(self.bn(self.blocks(self.stem(x)))))


def preact_resnet(
    num_classes: int, *, depths: Sequence[int], width: float, image_size: int, in_channels: int
) -> Classifier:
    """A pre-activation ResNet with ``depths`` blocks in its four stages; any image size."""
    trunk = PreActTrunk(depths, STAGE_CHANNELS[0], STAGE_CHANNELS, STAGE_STRIDES, width=width, in_channels=in_channels)
    return Classifier(trunk, trunk.num_features, num_classes)


NETS = {"preact-resnet18": functools.partial(preact_resnet, depths=(2, 2, 2, 2))}
