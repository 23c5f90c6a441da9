"""Convolutions that are trained: PyTorch's, or on a CPU, where it is faster, the compiled one in all three directions.

:mod:`moat.kernels.winograd` computes a 3x3 convolution of stride 1, the gradient of its input and that of its weight in
less than half of oneDNN's time. The weight has to be transformed in each direction, in every call, for it changes with
every step: images that make few tiles do not repay that.
"""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from moat.kernels import winograd

# Of 4x4 outputs: from so many on, the transformed weight is worth its making (measured: 12 to 16 with 256 and 512
# channels, 8 and less with fewer).
REPAY = 16
ONES = (1, 1)
PLAIN = (torch.Tensor, nn.Parameter)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, in training mode by :func:`conv2d`."""

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


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int] = ONES,
    padding: tuple[int, int] = ONES,
    dilation: tuple[int, int] = ONES,
) -> torch.Tensor:
    """``F.conv2d`` without bias and groups; up to rounding the same, forwards and backwards.

    Only calls that may need the weight's gradient are computed differently; then the result is channels last, and the
    weight's gradient is computed in every backward pass, also where only that of the images is asked for. Under
    autocast the weight stays float32, the products and sums, too; images and maps have autocast's type.

    Args:
        x: (B, C, H, W).
        weight: (filters, C, height, width).
    """
    if _trains(x, weight):
        autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if (autocast or dtype == torch.float32) and _serves(x, dtype, weight, stride, padding, dilation):
            return _Winograd.apply(x.to(dtype), weight, padding[0])
    return F.conv2d(x, weight, None, stride, padding, dilation)


def _trains(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this is a call on a CPU of which the weight's gradient may be asked."""
    if type(x) not in PLAIN or type(weight) not in PLAIN or x.device.type != "cpu":
        return False
    return weight.requires_grad and torch.is_grad_enabled() and not _watched()


def _watched() -> bool:
    """Whether something traces, counts or transforms the call, and so wants to see PyTorch's operators."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0


def _serves(x: torch.Tensor, dtype: torch.dtype, weight: torch.Tensor, stride, padding, dilation) -> bool:
    """Whether the compiled convolution computes this in all three directions, and sooner."""
    if x.ndim != 4 or x.shape[1] != weight.shape[1] or len(weight) % winograd.LANES:
        return False
    if dtype not in winograd.TYPES or weight.dtype != torch.float32 or tuple(stride) != ONES:
        return False
    return winograd.takes(weight, stride, dilation, padding) and winograd.count_tiles(x, padding[0]) >= REPAY


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return winograd.convolve(x, winograd.transformed(weight, briefly=True), len(weight), padding=padding)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, weight = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:2])
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(gradient):
            # A gradient of this gradient will be asked for, or there are several at once: PyTorch's own can do that.
            more = ONES, (ctx.padding,) * 2, ONES, False, (0, 0), 1, [*needed, False]
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight.to(x.dtype), None, *more)
            return of_x, of_weight if of_weight is None else of_weight.to(weight.dtype), None
        of_x = of_weight = None
        if needed[0]:
            mirrored = winograd.transformed(weight.flip(2, 3).transpose(0, 1), briefly=True)
            of_x = winograd.convolve(gradient, mirrored, weight.shape[1], padding=2 - ctx.padding)
        if needed[1]:
            of_weight = winograd.weight_gradient(x, gradient, padding=ctx.padding)
        return of_x, of_weight, None
