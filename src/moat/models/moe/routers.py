"""Routers: small nets from images (B, C, H, W) in [0,1] to one score per expert (B, experts).

All share a ResNet-20 trunk; they differ in the attention between trunk and scores. PyTorch's default initial weights.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe.attention import GroupedHead, PooledHead, SpatialAttention
from moat.models.nets.classifier import conv3x3, scale_channels

STAGE_CHANNELS = (16, 32, 64)
STAGE_STRIDES = (1, 2, 2)


class PaddedBlock(nn.Module):
    """Basic block whose shortcut has no parameters: every ``stride``-th pixel, and zeros for the new channels.

    Source: He et al., Deep Residual Learning, arXiv 1512.03385, section 4.2 (option A).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (before, out_channels - in_channels - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        if any(self.padding):
            shortcut = F.pad(shortcut, (0, 0, 0, 0, *self.padding))
        return F.relu(y + shortcut)


class Router(nn.Module):
    """Trunk, optional attention, head: raw images (B, C, H, W) in [0,1] to scores (B, experts).

    Args:
        attention: maps the trunk's output (B, D, H/4, W/4) to the same shape; None for no attention.
        head: maps that to scores.
    """

    def __init__(self, in_channels: int, channels: tuple[int, int, int], attention: nn.Module | None, head: nn.Module):
        super().__init__()
        self.stem = nn.Sequential(conv3x3(in_channels, channels[0]), nn.BatchNorm2d(channels[0]), nn.ReLU())
        blocks, previous = [], channels[0]
        for out_channels, stride in zip(channels, STAGE_STRIDES, strict=True):
            for index in range(3):
                blocks.append(PaddedBlock(previous, out_channels, stride if index == 0 else 1))
                previous = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.attention = attention if attention is not None else nn.Identity()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(self.blocks(self.stem(x))))


def _gap(channels: int, experts: int, head: str) -> tuple[nn.Module | None, nn.Module]:
    return None, PooledHead(channels, experts)


def _dcar(channels: int, experts: int, head: str) -> tuple[nn.Module | None, nn.Module]:
    attention = SpatialAttention(channels, experts, shared_query_key=True, learned_scale=True, two_paths=True)
    return attention, HEADS[head](channels, experts)


def _cgsa(channels: int, experts: int, head: str) -> tuple[nn.Module | None, nn.Module]:
    return SpatialAttention(channels, experts), HEADS[head](channels, experts)


def _gsa(channels: int, experts: int, head: str) -> tuple[nn.Module | None, nn.Module]:
    return SpatialAttention(channels, 1), PooledHead(channels, experts)


HEADS = {"grouped": GroupedHead, "fc": PooledHead}
# gap: pooling only. dcar, cgsa: attention in one channel group per expert. gsa: attention over all channels.
ROUTERS: dict[str, Callable[[int, int, str], tuple[nn.Module | None, nn.Module]]] = {
    "gap": _gap,
    "dcar": _dcar,
    "gsa": _gsa,
    "cgsa": _cgsa,
}


def build_router(kind: str, experts: int, *, width: float, in_channels: int, head: str = "grouped") -> Router:
    """A freshly initialised router.

    Args:
        kind: a key of ``ROUTERS``.
        head: "grouped" (each group's features score its own expert) or "fc"; for dcar and cgsa only.
        width: factor on the channels; the last stage is rounded up to a multiple of ``experts``.
    """
    channels = [scale_channels(value, width) for value in STAGE_CHANNELS]
    channels[-1] = experts * math.ceil(channels[-1] / experts)
    return Router(in_channels, tuple(channels), *ROUTERS[kind](channels[-1], experts, head))
