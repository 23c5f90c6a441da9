"""Graphs of forward passes, with convolutions as single calls."""

import torch
from torch import fx, nn
from torch.nn import functional as F

from moat.kernels.low_precision import only_casts
from moat.kernels.packed import PackedConv2d


class Tracer(fx.Tracer):
    """Looks into every module but convolutions and those of ``torch.nn``."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> fx.Graph | None:
    """The graph of ``model.forward``; None if it depends on the data, or if a module has hooks.

    Calls of a convolution may have a second argument, which is added to its output, and the option ``relu``.
    """
    if not all(only_casts(module) for module in model.modules()):
        return None
    try:
        return Tracer().trace(model)
    except Exception:  # A forward pass may do anything with the proxy that stands for its input.
        return None


def convolve_unpadded(
    convolution: nn.Conv2d, x: torch.Tensor, *residual: torch.Tensor, **options: bool
) -> torch.Tensor:
    """A call of a convolution in a graph of :func:`trace`, for an ``x`` (B, C, H, W) that brings its border along.

    Args:
        residual, options: further arguments of the call.
    """
    if isinstance(convolution, PackedConv2d):
        return convolution(x, *residual, pad=False, **options)
    how = convolution.stride, 0, convolution.dilation, convolution.groups
    return F.conv2d(x, convolution.weight, convolution.bias, *how)
