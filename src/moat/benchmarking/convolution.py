"""The compiled 3x3 convolution against PyTorch's on a CPU, in time and in rounding: layer by layer of a ResNet-18.

PyTorch's is oneDNN's: as everybody calls it, and with weights that oneDNN has in its own order already. NNPACK, which
PyTorch has too, is the library with a Winograd convolution that could have been taken instead. In training the weight
changes with every call, and its gradient is computed, too: there the peer is PyTorch's convolution, channels last. With
stride 2 trainings take PyTorch's, and attacks compute the gradient of the images by Winograd, too: that is compared.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moat.benchmarking import records

HELP = "the compiled convolution against oneDNN's and NNPACK's, layer by layer"
COLUMNS = ("case", "ratio", "low", "high", "n", "us_per_image", "rounding", "training")
# Channels, height and width, images; stride 1.
LAYERS = [
    (8, 32, 64), (16, 32, 64), (32, 16, 64), (64, 8, 64), (128, 4, 64),
    (64, 32, 16), (128, 16, 16), (256, 8, 16), (512, 4, 16),
]  # fmt: skip
# The same with stride 2, which doubles the channels.
STRIDED = [(16, 32, 64), (32, 16, 64), (64, 8, 64), (64, 32, 16), (128, 16, 16), (256, 8, 16)]


def add_arguments(parser) -> None:
    parser.add_argument("--layers", type=int, metavar="N", help="of the list of each stride only the first N")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed rounds (default: 15)")


def measure(arguments) -> dict[str, Any]:
    """A row per layer: how many times faster than oneDNN with ordered weights.

    Raises:
        ConfigError: the convolution is not compiled here.
    """
    import torch

    from moat.base.errors import ConfigError
    from moat.benchmarking import timing
    from moat.kernels import winograd

    if winograd.library() is None:
        raise ConfigError("moat bench convolution: nothing is compiled here; `moat doctor` says why")
    torch.set_num_threads(1)
    shared = {"compiled_for": winograd.instructions(), **records.conditions(Path(arguments.project), arguments)}
    layers = [(*layer, stride) for stride, kind in ((1, LAYERS), (2, STRIDED)) for layer in kind[: arguments.layers]]
    rows = [{**_layer(*layer, arguments.repeats), **shared} for layer in layers]
    return {"benchmark": "convolution", **timing.machine(torch.device("cpu")), "rows": rows}


def _layer(channels: int, size: int, images: int, stride: int, repeats: int) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    from moat.benchmarking import timing, updates

    print(f"moat bench convolution: {channels} channels, {size} x {size}, stride {stride}", file=sys.stderr)
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
        "us_per_image": {n: round(1e6 * timing.summary(s)["median"] / images, 1) for n, s in taken.items()},
        # Root mean square, relative to the standard deviation of what is exact.
        "rounding": {name: float(f"{error:.2g}") for name, error in errors.items()},
        **({"training": _training(x, weight, repeats)} if stride == 1 else {"gradient": _gradient(x, weight, repeats)}),
    }


def _training(x, weight, repeats: int) -> dict[str, Any]:
    """Forward, and the gradients of images and weight."""
    import torch
    from torch.nn import functional as F

    from moat.benchmarking import updates
    from moat.kernels.convolution import conv2d

    x, weight = x.clone().requires_grad_(), updates.channels_last(weight).requires_grad_()
    gradient = updates.channels_last(torch.randn_like(x))
    kinds = {"ours": lambda: conv2d(x, weight), "PyTorch": lambda: F.conv2d(x, weight, padding=1)}
    calls = {name: lambda make=make: torch.autograd.grad(make(), (x, weight), gradient) for name, make in kinds.items()}
    return _compared(calls, len(x), repeats)


def _gradient(x, weight, repeats: int) -> dict[str, Any]:
    """Of the images alone, with stride 2, of a weight that stays the same."""
    import torch

    from moat.benchmarking import updates
    from moat.kernels import winograd

    weight = updates.channels_last(weight)
    form = winograd.transformed(weight.flip(2, 3).transpose(0, 1), stride=2)
    gradient = updates.channels_last(torch.randn(len(x), len(weight), x.shape[2] // 2, x.shape[3] // 2))
    more = [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
    calls = {
        "ours": lambda: winograd.strided_gradient(gradient, form, x.shape[1], x.shape[2:]),
        "PyTorch": lambda: torch.ops.aten.convolution_backward(gradient, x, weight, None, *more)[0],
    }
    return _compared(calls, len(x), repeats)


def _compared(calls: dict[str, Callable], images: int, repeats: int) -> dict[str, Any]:
    from moat.benchmarking import timing

    taken = timing.cpu_seconds(calls, repeats=repeats)
    per_image = {name: round(1e6 * timing.summary(s)["median"] / images, 1) for name, s in taken.items()}
    return {**timing.ratio(taken["PyTorch"], taken["ours"]), "us_per_image": per_image}


def _contenders(x, weight, bias, stride: int) -> dict[str, Callable]:
    import torch
    from torch.nn import functional as F

    from moat.kernels import winograd

    last, plain, ops = weight.contiguous(memory_format=torch.channels_last), x.contiguous(), torch.ops.mkldnn
    form, pad, strides, one = winograd.transformed(weight, stride=stride), [1, 1], [stride, stride], [1, 1]
    ordered = ops._reorder_convolution_weight(last, pad, strides, one, 1, list(x.shape))
    calls = {
        "winograd": lambda: winograd.convolve(x, form, len(weight), bias, stride=stride),
        "oneDNN, ordered": lambda: ops._convolution_pointwise(x, ordered, bias, pad, strides, one, 1, "none", [], ""),
        "oneDNN": lambda: F.conv2d(x, last, bias, padding=1, stride=stride),
    }
    if torch._nnpack_available() and stride == 1:
        calls["NNPACK"] = lambda: torch._nnpack_spatial_convolution(plain, weight, bias, pad)
    return {name: torch.no_grad()(call) for name, call in calls.items()}
