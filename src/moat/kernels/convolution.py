"""Convolutions in training: PyTorch's, or on a CPU the compiled Winograd convolution where that is faster.

:mod:`moat.kernels.winograd` computes a 3x3 convolution of stride 1, its input gradient and its weight gradient in less
than half of oneDNN's time. As the weight changes with every step it has to be transformed in every call and direction,
which pays off only from a number of tiles on.
"""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from moat.kernels import winograd
from moat.models.nets import pointwise
from moat.models.nets.masked import MaskedConv2d

# 4x4 output tiles from which transforming the weight pays off: measured 12 to 16 with 256 and 512 channels, 8 or less
# with fewer channels.
MIN_TILES = 16
# Subclasses may have their own ideas of an operator.
TENSOR_CLASSES = (torch.Tensor, nn.Parameter)


class _FastForward(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if (
            self.training
            and bias is None
            and self.padding_mode == "zeros"
            and self.groups == 1
            and not isinstance(self.padding, str)
        ):
            return conv2d(x, weight, self.stride, self.padding, self.dilation)
        return super()._conv_forward(x, weight, bias)


class FastConv2d(_FastForward):
    """``nn.Conv2d``, computed by :func:`conv2d` in training mode."""


class FastMaskedConv2d(_FastForward, MaskedConv2d):
    """``MaskedConv2d``, computed by :func:`conv2d` in training mode."""


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int] = pointwise.ONES,
    padding: tuple[int, int] = pointwise.ONES,
    dilation: tuple[int, int] = pointwise.ONES,
) -> torch.Tensor:
    """``F.conv2d`` without bias and groups, equal up to rounding in forward and backward.

    Only calls that may need the weight's gradient take another path. Their result is channels last, and every backward
    pass computes the weight's gradient, even if only the input's is asked for. Where oneDNN could damage the process
    (:func:`moat.models.nets.pointwise.is_unsafe`), the pixels are chosen first, and the stride is 1. Under autocast the
    weight, products and sums stay float32; images and maps have autocast's type.

    Args:
        x: (B, C, H, W).
        weight: (filters, C, height, width).
    """
    if _may_need_weight_gradient(x, weight):
        autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if (autocast or dtype == torch.float32) and _is_faster(x, dtype, weight, stride, padding, dilation):
            return _Winograd.apply(x.to(dtype), weight, padding[0])
        return pointwise.conv2d(x, weight, None, stride, padding, dilation)
    return F.conv2d(x, weight, None, stride, padding, dilation)


def _may_need_weight_gradient(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this is an ordinary call on a CPU whose weight may get a gradient."""
    if type(x) not in TENSOR_CLASSES or type(weight) not in TENSOR_CLASSES or x.device.type != "cpu":
        return False
    return weight.requires_grad and torch.is_grad_enabled() and not _is_observed()


def _is_observed() -> bool:
    """Whether something that traces, counts or transforms the call needs to see PyTorch's operators."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0


def _is_faster(x: torch.Tensor, dtype: torch.dtype, weight: torch.Tensor, stride, padding, dilation) -> bool:
    """Whether the compiled convolution supports all three directions of this one, and is faster."""
    if x.ndim != 4 or x.shape[1] != weight.shape[1] or len(weight) % winograd.LANES:
        return False
    if dtype not in winograd.TYPES or weight.dtype != torch.float32 or tuple(stride) != pointwise.ONES:
        return False
    supported = winograd.supports(weight, stride, dilation, padding)
    return supported and winograd.count_tiles(x, padding[0]) >= MIN_TILES


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        transformed = winograd.transform_weight(weight, reuse_buffer=True)
        return winograd.convolve(x, transformed, len(weight), padding=padding)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, weight = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:2])
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(gradient):
            # A second derivative, or a batch of gradients: PyTorch's own backward supports both.
            more = pointwise.ONES, (ctx.padding,) * 2, pointwise.ONES, False, (0, 0), 1, [*needed, False]
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight.to(x.dtype), None, *more)
            return of_x, of_weight if of_weight is None else of_weight.to(weight.dtype), None
        of_x = of_weight = None
        if needed[0]:
            mirrored = winograd.transform_weight(weight.flip(2, 3).transpose(0, 1), reuse_buffer=True)
            of_x = winograd.convolve(gradient, mirrored, weight.shape[1], padding=2 - ctx.padding)
        if needed[1]:
            of_weight = winograd.weight_gradient(x, gradient, padding=ctx.padding)
        return of_x, of_weight, None
