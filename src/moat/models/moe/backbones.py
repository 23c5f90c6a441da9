"""MoE-CNN: residual nets whose block convolutions are divided among experts, one route per image for the whole net.

So the net is a bundle of narrow nets that share stem, batch norm, head and (in ResNets) projection shortcuts.

Source: Zhang et al., Robust Mixture-of-Expert Training for Convolutional Neural Networks, ICCV 2023, as its released
code builds them; but a wide net's changing blocks start from the activated input, as they do in a wide net.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe.channel_experts import ChannelExpertConv2d, gated_relu
from moat.models.moe.norms import make_norm
from moat.models.moe.routing import Groups
from moat.models.nets.classifier import conv1x1, conv3x3, global_average, scale_channels


def expert_conv(in_channels: int, out_channels: int, size: int, stride: int, experts: int) -> ChannelExpertConv2d:
    """A channel-expert convolution that keeps the image size up to its stride."""
    return ChannelExpertConv2d(in_channels, out_channels, size, experts=experts, stride=stride, padding=size // 2)


class MoeBasicBlock(nn.Module):
    """Basic block with channel-expert 3x3 convolutions; a projection shortcut is dense and shared."""

    FOLDS = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, experts: int, norm: str):
        super().__init__()
        self.conv1 = expert_conv(in_channels, out_channels, 3, stride, experts)
        self.bn1 = make_norm(norm, out_channels, experts)
        self.conv2 = expert_conv(out_channels, out_channels, 3, 1, experts)
        self.bn2 = make_norm(norm, out_channels, experts)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor, groups: Groups, gate: torch.Tensor | None) -> torch.Tensor:
        if self.conv1.bias is not None and self.conv2.bias is not None:  # both norms are folded
            y, gates = self._inner(x, groups, gate)
            return self.conv2.forward_sorted(y, groups, residual=self.shortcut(x), relu=True, behind=gates)
        y = F.relu(self.bn1(self.conv1.forward_sorted(x, groups, gate), groups))
        return F.relu(self.bn2(self.conv2.forward_sorted(y, groups, gate), groups) + self.shortcut(x))

    def _inner(self, x: torch.Tensor, groups: Groups, gate: torch.Tensor | None):
        """What the second convolution of a folded block gets: its input, and the gates that it has to see to."""
        if gate is None:
            return self.conv1.forward_sorted(x, groups, relu=True), None
        if not (self.conv1.packed and self.conv2.packed):
            return gated_relu(self.conv1.forward_sorted(x, groups), gate, self.conv1.bias), None
        y = self.conv1.forward_sorted(x, groups, relu=True, masked=True)
        if self.conv2.takes_gates(y, groups):
            return y, (gate, self.conv1.bias)
        # A copy: PyTorch's relu, which the first convolution may have called, needs its result as it was.
        return gated_relu(y.clone(), gate, self.conv1.bias), None


class MoePreActBlock(nn.Module):
    """Pre-activation block of channel-expert convolutions; so is its 1x1 shortcut, where the shape changes."""

    FOLDS = (("conv1", "bn2"),)

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, experts: int, norm: str):
        super().__init__()
        self.bn1 = make_norm(norm, in_channels, experts)
        self.conv1 = expert_conv(in_channels, out_channels, 3, stride, experts)
        self.bn2 = make_norm(norm, out_channels, experts)
        self.conv2 = expert_conv(out_channels, out_channels, 3, 1, experts)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = expert_conv(in_channels, out_channels, 1, stride, experts) if changes else None

    def forward(self, x: torch.Tensor, groups: Groups, gate: torch.Tensor | None) -> torch.Tensor:
        activated = F.relu(self.bn1(x, groups))
        y = F.relu(self.bn2(self.conv1.forward_sorted(activated, groups, gate), groups))
        y = self.conv2.forward_sorted(y, groups, gate)
        return y + (x if self.shortcut is None else self.shortcut.forward_sorted(activated, groups, gate))


class MoeResNetTrunk(nn.Module):
    """Sorted, normalised images (B, C, H, W) to features (B, D). The stem is dense, of full width."""

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

    def forward(self, x: torch.Tensor, groups: Groups, gate: torch.Tensor | None) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, groups, gate)
        return global_average(x)


class MoeWideTrunk(nn.Module):
    """Sorted, normalised images (B, C, H, W) to features (B, D): WRN-28-10. The stem is dense, of an expert's width."""

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

    def forward(self, x: torch.Tensor, groups: Groups, gate: torch.Tensor | None) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, groups, gate)
        return global_average(F.relu(self.bn(x, groups)))


TRUNKS = {
    "resnet18": (MoeResNetTrunk, (2, 2, 2, 2)),
    "resnet34": (MoeResNetTrunk, (3, 4, 6, 3)),
    "wrn-28-10": (MoeWideTrunk, (4, 4, 4)),
}
