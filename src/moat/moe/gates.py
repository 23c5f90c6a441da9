"""What weights the experts of a mixture of full networks: small nets that map an image to one score per expert."""

import torch
from torch import nn
from torch.nn import functional as F

from moat.nets import Normalization
from moat.nets.classifier import conv3x3, global_average, scale_channels
from moat.nets.normalize import make_normalize


class MlpRouter(nn.Module):
    """Normalise, flatten, one hidden layer, scores (B, E). Initialised as PyTorch does.

    Args:
        hidden: units of the hidden layer at ``width`` 1.
    """

    def __init__(
        self, experts: int, *, hidden: int, image_size: int, in_channels: int, normalize: Normalization, width: float
    ):
        super().__init__()
        units = scale_channels(hidden, width)
        self.normalize = make_normalize(normalize, in_channels)
        self.hidden = nn.Linear(in_channels * image_size**2, units)
        self.head = nn.Linear(units, experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.hidden(self.normalize(x).flatten(1))))


class ResNetRouter(nn.Module):
    """ResNet-20 of widths 16-32-64 without parameters in its shortcuts; scores (B, E) of raw images in [0,1].

    Source: the router of ADVMoE (Zhang et al., ICCV 2023). Initialised as PyTorch does.
    """

    def __init__(self, experts: int, *, in_channels: int, width: float):
        super().__init__()
        channels = [scale_channels(value, width) for value in (16, 32, 64)]
        self.stem = nn.Sequential(conv3x3(in_channels, channels[0]), nn.BatchNorm2d(channels[0]), nn.ReLU())
        previous, blocks = channels[0], []
        for out_channels, stride in zip(channels, (1, 2, 2), strict=True):
            for index in range(3):
                blocks.append(_Block(previous, out_channels, stride if index == 0 else 1))
                previous = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(previous, experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(global_average(self.blocks(self.stem(x))))


class _Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus the input, subsampled and padded with zero channels where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        self.conv2, self.bn2 = conv3x3(out_channels, out_channels), nn.BatchNorm2d(out_channels)
        self.stride = stride
        missing = out_channels - in_channels
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], self.padding))
