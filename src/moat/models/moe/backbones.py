"""MoE-CNN: residual nets whose block convolutions are divided among experts; an image takes one expert in all layers.

The net is thus a bundle of narrow nets that share stem, batch norm, head and (in ResNets) projection shortcuts.

Source: Zhang et al., Robust Mixture-of-Expert Training for Convolutional Neural Networks, ICCV 2023, as its released
code builds them, except that the 1x1 shortcuts of a wide net start from the activated input, as in Wide ResNets.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe.channel_experts import ChannelExpertConv2d
from moat.models.moe.norms import make_norm
from moat.models.nets.classifier import conv1x1, conv3x3, global_average, scale_channels


def expert_conv(in_channels: int, out_channels: int, size: int, stride: int, experts: int) -> ChannelExpertConv2d:
    """A channel-expert convolution that keeps the image size up to its stride."""
    return ChannelExpertConv2d(in_channels, out_channels, size, experts=experts, stride=stride, padding=size // 2)


class MoeBasicBlock(nn.Module):
    """Basic block with channel-expert 3x3 convolutions; a projection shortcut is dense and shared."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, experts: int, norm: str):
        super().__init__()
        self.conv1 = expert_conv(in_channels, out_channels, 3, stride, experts)
        self.bn1 = make_norm(norm, out_channels, experts)
        self.conv2 = expert_conv(out_channels, out_channels, 3, 1, experts)
        self.bn2 = make_norm(norm, out_channels, experts)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor, route: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x, route, gate), route))
        return F.relu(self.bn2(self.conv2(y, route, gate), route) + self.shortcut(x))


class MoePreActBlock(nn.Module):
    """Pre-activation block of channel-expert convolutions; the 1x1 shortcut is one too where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, experts: int, norm: str):
        super().__init__()
        self.bn1 = make_norm(norm, in_channels, experts)
        self.conv1 = expert_conv(in_channels, out_channels, 3, stride, experts)
        self.bn2 = make_norm(norm, out_channels, experts)
        self.conv2 = expert_conv(out_channels, out_channels, 3, 1, experts)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = expert_conv(in_channels, out_channels, 1, stride, experts) if changes else None

    def forward(self, x: torch.Tensor, route: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        activated = F.relu(self.bn1(x, route))
        y = F.relu(self.bn2(self.conv1(activated, route, gate), route))
        y = self.conv2(y, route, gate)
        return y + (x if self.shortcut is None else self.shortcut(activated, route, gate))


class MoeResNetTrunk(nn.Module):
    """Normalised images (B, C, H, W) to features (B, D). The stem is dense, at full width."""

    CHANNELS, STRIDES = (64, 128, 256, 512), (1, 2, 2, 2)

    def __init__(self, depths: Sequence[int], *, width: float, ratio: float, in_channels: int, experts: int, norm: str):
        super().__init__()
        previous = scale_channels(self.CHANNELS[0], width)
        self.stem = nn.Sequential(conv3x3(in_channels, previous), nn.BatchNorm2d(previous), nn.ReLU())
        self.blocks = nn.ModuleList()
        for depth, channels, stride in zip(depths, self.CHANNELS, self.STRIDES, strict=True):
            out_channels = scale_channels(channels, width * ratio)
            for index in range(depth):
                first = stride if index == 0 else 1
                self.blocks.append(MoeBasicBlock(previous, out_channels, first, experts=experts, norm=norm))
                previous = out_channels
        self.num_features = previous

    def forward(self, x: torch.Tensor, route: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, route, gate)
        return global_average(x)


class MoeWideTrunk(nn.Module):
    """WRN-28-10: normalised images (B, C, H, W) to features (B, D). The stem is dense, at the width of one expert."""

    STEM, STRIDES = 16, (1, 2, 2)

    def __init__(self, depths: Sequence[int], *, width: float, ratio: float, in_channels: int, experts: int, norm: str):
        super().__init__()
        previous = scale_channels(self.STEM, width * ratio)
        self.stem = conv3x3(in_channels, previous)
        self.blocks = nn.ModuleList()
        for depth, factor, stride in zip(depths, (10, 20, 40), self.STRIDES, strict=True):
            out_channels = scale_channels(self.STEM * factor, width * ratio)
            for index in range(depth):
                first = stride if index == 0 else 1
                self.blocks.append(MoePreActBlock(previous, out_channels, first, experts=experts, norm=norm))
                previous = out_channels
        self.bn = make_norm(norm, previous, experts)
        self.num_features = previous

    def forward(self, x: torch.Tensor, route: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, route, gate)
        return global_average(F.relu(self.bn(x, route)))


TRUNKS = {
    "resnet18": (MoeResNetTrunk, (2, 2, 2, 2)),
    "resnet34": (MoeResNetTrunk, (3, 4, 6, 3)),
    "wrn-28-10": (MoeWideTrunk, (4, 4, 4)),
}
