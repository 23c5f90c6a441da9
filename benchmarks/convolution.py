"""The compiled 3x3 convolution against PyTorch's on a CPU, in time and in rounding: layer by layer of a ResNet-18.

    python benchmarks/convolution.py [--layers 3]

PyTorch's is oneDNN's: as everybody calls it, and with weights that are in oneDNN's own order already. NNPACK, which
PyTorch has too, is the library with a Winograd convolution that could have been taken instead. In training the weight
changes with every call, and its gradient is computed, too: there the peer is PyTorch's convolution, channels last. With
stride 2 trainings take PyTorch's, and attacks compute the gradient of the images by Winograd: that is compared.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchlib import command, timing, updates
from moat.base.errors import ConfigError
from moat.kernels import winograd
from moat.kernels.convolution import conv2d

COLUMNS = ("case", "ratio", "low", "high", "n", "us_per_image", "rounding", "training")
# Channels, height and width, images; stride 1.
LAYERS = [
    (8, 32, 64), (16, 32, 64), (32, 16, 64), (64, 8, 64), (128, 4, 64),
    (64, 32, 16), (128, 16, 16), (256, 8, 16), (512, 4, 16),
]  # fmt: skip
# The same with stride 2, which doubles the channels.
STRIDED = [(16, 32, 64), (32, 16, 64), (64, 8, 64), (64, 32, 16), (128, 16, 16), (256, 8, 16)]


def add_arguments(parser) -> None:
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N layers of each stride")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed rounds (default: 15)")


def measure(arguments) -> list[dict[str, Any]]:
    """A row per layer: how many times faster than oneDNN with ordered weights.

    Raises:
        ConfigError: the convolution is not compiled here.
    """
    if winograd.library() is None:
        raise ConfigError("nothing is compiled here; `moat doctor` says why")
    layers = [(*layer, stride) for stride, kind in ((1, LAYERS), (2, STRIDED)) for layer in kind[: arguments.layers]]
    return [_layer(*layer, arguments.repeats) for layer in layers]


def _layer(channels: int, size: int, images: int, stride: int, repeats: int) -> dict[str, Any]:
    print(f"convolution: {channels} channels, {size} x {size}, stride {stride}", file=sys.stderr)
    torch.manual_seed(0)
    x, filters = updates.channels_last(torch.randn(images, channels, size, size).relu()), channels * stride
    weight, bias = torch.randn(filters, channels, 3, 3) / (9 * channels) ** 0.5, torch.zeros(filters)
    exact = F.conv2d(x.double(), weight.double(), padding=1, stride=stride)
    calls = _contenders(x, weight, bias, stride)
    taken = timing.cpu_seconds(calls, repeats=repeats)
    errors = {name: float((call() - exact).square().mean().sqrt() / exact.std()) for name, call in calls.items()}
    return {
        "case": f"convolution, {channels} channels, {size} x {size}, {images} images" + ", stride 2" * (stride == 2),
        "what": f"3x3 convolution, stride {stride}, float32, without gradient",
        "against": "oneDNN with ordered weights",
        **timing.ratio(taken["oneDNN, ordered"], taken["winograd"]),
        "us_per_image": _microseconds(taken, images),
        # Root mean square error, relative to the standard deviation of the exact result.
        "rounding": {name: float(f"{error:.2g}") for name, error in errors.items()},
        **({"training": _training(x, weight, repeats)} if stride == 1 else {"gradient": _gradient(x, weight, repeats)}),
        "compiled_for": winograd.instructions(),
    }


def _training(x, weight, repeats: int) -> dict[str, Any]:
    """Forward, and the gradients of images and weight."""
    x, weight = x.clone().requires_grad_(), updates.channels_last(weight).requires_grad_()
    gradient = updates.channels_last(torch.randn_like(x))
    kinds = {"ours": lambda: conv2d(x, weight), "PyTorch": lambda: F.conv2d(x, weight, padding=1)}
    calls = {name: lambda make=make: torch.autograd.grad(make(), (x, weight), gradient) for name, make in kinds.items()}
    return _compared(calls, len(x), repeats)


def _gradient(x, weight, repeats: int) -> dict[str, Any]:
    """The gradient of the images alone, with stride 2, for a weight that stays the same."""
    weight = updates.channels_last(weight)
    form = winograd.transform_weight(weight.flip(2, 3).transpose(0, 1), stride=2)
    gradient = updates.channels_last(torch.randn(len(x), len(weight), x.shape[2] // 2, x.shape[3] // 2))
    more = [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
    calls = {
        "ours": lambda: winograd.strided_gradient(gradient, form, x.shape[1], x.shape[2:]),
        "PyTorch": lambda: torch.ops.aten.convolution_backward(gradient, x, weight, None, *more)[0],
    }
    return _compared(calls, len(x), repeats)


def _compared(calls: dict[str, Callable], images: int, repeats: int) -> dict[str, Any]:
    taken = timing.cpu_seconds(calls, repeats=repeats)
    return {**timing.ratio(taken["PyTorch"], taken["ours"]), "us_per_image": _microseconds(taken, images)}


def _microseconds(taken: dict[str, list[float]], images: int) -> dict[str, float]:
    """Median per image."""
    return {name: round(1e6 * timing.summary(values)["median"] / images, 1) for name, values in taken.items()}


def _contenders(x, weight, bias, stride: int) -> dict[str, Callable]:
    last, plain, ops = weight.contiguous(memory_format=torch.channels_last), x.contiguous(), torch.ops.mkldnn
    form, pad, strides, one = winograd.transform_weight(weight, stride=stride), [1, 1], [stride, stride], [1, 1]
    ordered = ops._reorder_convolution_weight(last, pad, strides, one, 1, list(x.shape))
    calls = {
        "winograd": lambda: winograd.convolve(x, form, len(weight), bias, stride=stride),
        "oneDNN, ordered": lambda: ops._convolution_pointwise(x, ordered, bias, pad, strides, one, 1, "none", [], ""),
        "oneDNN": lambda: F.conv2d(x, last, bias, padding=1, stride=stride),
    }
    if torch._nnpack_available() and stride == 1:
        calls["NNPACK"] = lambda: torch._nnpack_spatial_convolution(plain, weight, bias, pad)
    return {name: torch.no_grad()(call) for name, call in calls.items()}


if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
