"""Strided 1x1 convolutions, as in shortcuts, of few channels: their pixels are chosen first.

That is the same function. Where 8 does not divide the input channels, oneDNN 3.12 without AVX-512 writes beyond its
buffer when it computes the weight's gradient of such a convolution in channels last, and Python ends (docs/faults.md).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

# Floats of an AVX2 register.
ONEDNN_LANES = 8
ONES = (1, 1)


def is_unsafe(channels: int, kernel_size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether oneDNN may damage the memory of the process in the convolution's backward pass."""
    return tuple(kernel_size) == ONES and tuple(stride) != ONES and channels % ONEDNN_LANES != 0


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = ONES,
) -> torch.Tensor:
    """``F.conv2d`` without groups, that never damages the process."""
    if tuple(padding) == (0, 0) and is_unsafe(weight.shape[1], weight.shape[2:], stride):
        x, stride = x[:, :, :: stride[0], :: stride[1]], ONES
    return F.conv2d(x, weight, bias, stride, padding, dilation)


class PixelsFirstConv2d(nn.Conv2d):
    """A strided 1x1 convolution without padding and groups, whose pixels are chosen first."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.conv2d(input[:, :, :: self.stride[0], :: self.stride[1]], weight, bias)
