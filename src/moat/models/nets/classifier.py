"""The parts that all nets share: normalisation, features, linear head; channel scaling; initialisation."""

import torch
from torch import nn

from moat.models.nets.pointwise import PixelsFirstConv2d, is_unsafe

MIN_CHANNELS = 4


class Classifier(nn.Module):
    """``head(trunk(normalize(x)))``: images in [0,1] (B, C, H, W) to logits (B, num_classes).

    Args:
        trunk: maps normalised images to features (B, D).
        num_features: D.
    """

    def __init__(self, trunk: nn.Module, num_features: int, num_classes: int):
        super().__init__()
        self.normalize: nn.Module = nn.Identity()
        self.trunk = trunk
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Penultimate features (B, D) of images (B, C, H, W) in [0,1]."""
        return self.trunk(self.normalize(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def scale_channels(channels: int, width: float) -> int:
    """``channels * width``, rounded, at least 4: with fewer a net learns next to nothing."""
    return max(MIN_CHANNELS, round(channels * width))


def initialize(net: Classifier) -> None:
    """Reinitialise all weights: convolutions Kaiming normal (fan out), batch norm 1/0, the head N(0, 0.01)/0.

    Hidden linear layers (LeNet) get Kaiming normal weights, too: the signal after three layers of N(0, 0.01) is so
    small that plain SGD hardly starts.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            mode = "fan_out" if isinstance(module, nn.Conv2d) else "fan_in"
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(net.head.weight, std=0.01)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the image size up to its stride."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias, for shortcuts whose shape changes."""
    layer = PixelsFirstConv2d if is_unsafe(in_channels, (1, 1), (stride, stride)) else nn.Conv2d
    return layer(in_channels, out_channels, 1, stride=stride, bias=False)


def global_average(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, C): the mean over all pixels."""
    return x.mean((2, 3))
