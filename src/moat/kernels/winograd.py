"""3x3 convolutions of stride 1 and 2 on a CPU by Winograd; `moat bench convolution` says how fast and exact.

oneDNN has no such convolution for x86 any more. NNPACK has one of stride 1, which is slower than oneDNN's direct one
for most layers of a ResNet and rounds five to fifteen times as much; this one rounds two to three times as much, with
stride 2 no more than a direct one forwards, and twice as much backwards.

The work is done by ``winograd.cpp``, which is compiled when moat is installed (``hatch_build.py``), once for each
instruction set. Where there was no compiler, or the processor has neither AVX-512 nor AVX2, there is no library, and
convolutions stay PyTorch's.
"""

import ctypes
import functools
import hashlib
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
# Instruction sets that a library is compiled for, the best first.
LEVELS = ("avx512_bf16", "avx512", "avx2")
# Stride -> values that are transformed together for each channel: 4x4 outputs take 6x6 inputs, or 9x9.
POINTS = {1: 36, 2: 81}
# What images and maps may be.
TYPES = (torch.float32, torch.bfloat16)
# Channels come in multiples of this, and so many filters are computed together.
LANES = 8
# With fewer tiles (by stride), a weight of so many numbers takes longer to read than to compute with.
FEW_TILES, MUCH_WEIGHT = {1: 4, 2: 8}, 2**20
# Type and stride -> the share of all tiles that must lie within the map: the rest is computed for nothing.
# oneDNN multiplies twice as fast in bfloat16, which leaves stride 2 nothing to gain.
LEAST_USED = {
    (torch.float32, 1): 0.0,
    (torch.float32, 2): 0.75,
    (torch.bfloat16, 1): 0.5,
    (torch.bfloat16, 2): math.inf,
}
# Backwards in bfloat16 there is something to gain with stride 2 up to so many numbers.
LITTLE_WEIGHT = 2**15

_memory = threading.local()


def source_hash() -> str:
    """By which a library knows what it was compiled from."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]


def library_path(instructions: str, folder: Path = SOURCE.parent / "compiled") -> Path:
    """Where the library for one of ``LEVELS`` lies."""
    return folder / f"winograd_{instructions}.so"


def served() -> tuple[str, ...]:
    """Those of ``LEVELS`` that this processor has, as torch sees it (``ATEN_CPU_CAPABILITY`` can lower that)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return LEVELS[2:] if capability == "AVX2" else ()
    converts = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return LEVELS if converts() else LEVELS[1:]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library for this processor; None where there is none, or where it was compiled from another source."""
    path = next((path for path in map(library_path, served()) if path.exists()), None)
    if path is None:
        return None
    found = ctypes.CDLL(str(path))
    found.moat_winograd_source.restype = ctypes.c_char_p
    if found.moat_winograd_source().decode() != source_hash():
        log.warning("%s was compiled from another winograd.cpp: install moat again", path)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.moat_winograd_scratch.argtypes = [number] * 4
    found.moat_winograd_gradient_scratch.argtypes = [number] * 3
    for function in (found.moat_winograd_scratch, found.moat_winograd_gradient_scratch):
        function.restype = number
    found.moat_winograd_weight.argtypes = [pointer, number * 4, number, number, number, pointer]
    found.moat_winograd_convolve.argtypes = [pointer] * 6 + [number] * 12 + [pointer] * 4
    found.moat_winograd_weight_gradient.argtypes = [pointer] * 3 + [number] * 10 + [pointer]
    for function in (found.moat_winograd_weight, found.moat_winograd_convolve, found.moat_winograd_weight_gradient):
        function.restype = None
    return found


def instructions() -> str | None:
    """Which of ``LEVELS`` the library in use was compiled for; None where none is."""
    if library() is None:
        return None
    return next(name for name in LEVELS if Path(library()._name) == library_path(name))


def takes(weight: torch.Tensor, stride: Sequence[int], dilation: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether :func:`convolve` computes the convolution with this weight (filters, channels, height, width)."""
    if weight.device.type != "cpu" or weight.dtype not in TYPES or weight.shape[2:] != (3, 3):
        return False
    if weight.shape[1] % LANES or set(dilation) != {1} or len(set(stride)) > 1 or stride[0] not in POINTS:
        return False
    return padding[0] == padding[1] and padding[0] in (0, 1, 2) and library() is not None


def pays(weight: torch.Tensor, x: torch.Tensor, padding: int, stride: int = 1) -> bool:
    """Whether :func:`convolve` is the faster way for images ``x`` (B, C, H, W)."""
    size = _output(x, padding, stride)
    tiles = _tiles(len(x), size)
    if weight.numel() >= MUCH_WEIGHT and tiles < FEW_TILES[stride]:
        return False
    return len(x) * math.prod(size) >= LEAST_USED[x.dtype, stride] * 16 * tiles


def strided_gradient_pays(weight: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether :func:`strided_gradient` is the faster way, with the convolution's weight."""
    if weight.numel() >= MUCH_WEIGHT and count_tiles(gradient, 1) < FEW_TILES[2]:
        return False
    return gradient.dtype == torch.float32 or weight.numel() <= LITTLE_WEIGHT


def count_tiles(x: torch.Tensor, padding: int, stride: int = 1) -> int:
    """Of 4x4 outputs, in the convolution of ``x`` (B, C, H, W)."""
    return _tiles(len(x), _output(x, padding, stride))


def _tiles(images: int, size: tuple[int, int]) -> int:
    return images * math.prod(-(-side // 4) for side in size)


def _output(x: torch.Tensor, padding: int, stride: int) -> tuple[int, int]:
    height, width = ((size + 2 * padding - 3) // stride + 1 for size in x.shape[2:])
    return height, width


def transformed(weight: torch.Tensor, *, stride: int = 1, briefly: bool = False) -> torch.Tensor:
    """The weight (filters, channels, 3, 3) as :func:`convolve` wants it: float32, rounded once, from float64.

    Args:
        stride: of the convolution, or of the one whose gradient is to be computed: 1 or 2.
        briefly: the result is good until the next such call of this thread, which writes into the same memory.
    """
    filters, channels = _padded(len(weight)), weight.shape[1]
    if filters > len(weight):
        weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, filters - len(weight)))
    weight = weight.detach().float()
    size = POINTS[stride] * filters * channels
    found = _kept("weight", size)[:size] if briefly else weight.new_empty(size)
    strides = (ctypes.c_int64 * 4)(*weight.stride())
    library().moat_winograd_weight(weight.data_ptr(), strides, channels, filters, stride, found.data_ptr())
    return found


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    filters: int,
    bias: torch.Tensor | None = None,
    *,
    padding: int = 1,
    stride: int = 1,
    mask: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    relu: bool = False,
    passes: torch.Tensor | None = None,
    less: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """``relu(conv2d(x where mask > 0) + bias + residual)`` in channels last (B, filters, H', W'), without gradient.

    With ``passes`` the result is 0 where that is 0 or below, and behind it come for each image the sums of
    ``result * (2 * passes - less)``, float32 (B,).

    Images and maps may be bfloat16, too; all sums are float32's, and the result is rounded once.

    An image's result depends neither on the others nor on the number of threads. A pixel that is not a number makes
    the results around it, up to five pixels away, not numbers.

    Args:
        x: (B, channels, H, W), float32 or bfloat16.
        weight: from :func:`transformed`, of the same stride.
        padding: zeros around the image.
        mask: as ``x``; where it is 0 or below, x counts as 0.
        residual, passes: as the result.
        less: (filters,), float32.
    """
    size = _output(x, padding, stride)
    products = None
    if passes is not None:
        products = x.new_empty(len(x), _tiles(1, size), dtype=torch.float32)
    more = {"bias": bias, "residual": residual, "relu": relu, "passes": passes, "less": less, "products": products}
    y = _computed(x, weight, filters, size, padding=padding, stride=stride, mask=mask, **more)
    return y if products is None else (y, products.sum(1))


def strided_gradient(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    channels: int,
    size: Sequence[int],
    *,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of a convolution with stride 2 and padding 1, the gradient of its images (B, channels, *size), channels last.

    Args:
        gradient: (B, filters, H', W') of the convolution, float32 or bfloat16.
        weight: from :func:`transformed` with stride 2, of (channels, filters, 3, 3): the convolution's, mirrored.
        mask: as ``gradient``; where it is 0 or below, gradient counts as 0.
    """
    return _computed(gradient, weight, channels, size, padding=0, stride=-2, mask=mask)


def _computed(
    x, weight, filters: int, size, *, padding, stride, mask,
    bias=None, residual=None, relu=False, passes=None, less=None, products=None,
) -> torch.Tensor:  # fmt: skip
    """What the library makes of it; ``stride`` as it numbers them."""
    x, mask, residual, passes = (
        each if each is None else each.contiguous(memory_format=torch.channels_last)
        for each in (x, mask, residual, passes)
    )
    batch, channels, *of_x = x.shape
    padded = _padded(filters)
    if padded > filters and not (bias is residual is passes is None):
        raise ValueError(f"a bias, residual or mask of {filters} filters: only multiples of {LANES} may have one")
    if weight.numel() != POINTS[abs(stride)] * channels * padded:
        raise ValueError(f"images of {channels} channels do not fit the weight, which is transformed for others")
    y = torch.empty((batch, padded, *size), dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
    if y.numel():
        threads = torch.get_num_threads()
        scratch = _kept("scratch", _needed("moat_winograd_scratch", channels, padded, stride, threads))
        bias = bias if bias is None else bias.float()
        places = [None if each is None else each.data_ptr() for each in (x, mask, weight, bias, residual, y)]
        sizes = (batch, *of_x, channels, *size, padded, padding, stride, relu, x.dtype == torch.bfloat16, threads)
        more = (None if each is None else each.data_ptr() for each in (passes, less, products))
        library().moat_winograd_convolve(*places, *sizes, scratch.data_ptr(), *more)
    return y if padded == filters else y[:, :filters].contiguous(memory_format=torch.channels_last)


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, *, padding: int = 1) -> torch.Tensor:
    """Of ``conv2d(x, weight)``, the gradient of the weight (filters, channels, 3, 3), float32, channels last.

    Args:
        x: (B, channels, H, W), float32 or bfloat16.
        gradient: (B, filters, H', W') of x's type: of the convolution. Channels and filters are multiples of 8.
    """
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    (batch, channels, height, width), filters = x.shape, gradient.shape[1]
    shape, last = (filters, channels, 3, 3), torch.channels_last
    found = torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=last)
    threads = torch.get_num_threads()
    scratch = _kept("scratch", _needed("moat_winograd_gradient_scratch", channels, filters, threads))
    sizes = (batch, height, width, channels, *gradient.shape[2:], filters, padding, x.dtype == torch.bfloat16, threads)
    places = (each.data_ptr() for each in (x, gradient, found))
    library().moat_winograd_weight_gradient(*places, *sizes, scratch.data_ptr())
    return found


@functools.cache
def _needed(function: str, *sizes: int) -> int:
    """Floats of scratch."""
    return getattr(library(), function)(*sizes)


def _padded(filters: int) -> int:
    """As many as are computed."""
    return -(-filters // LANES) * LANES


def _kept(name: str, size: int) -> torch.Tensor:
    """At least ``size`` floats, this thread's own; the same ones every time, so that they stay in the cache."""
    kept = getattr(_memory, name, None)
    if kept is None or kept.numel() < size:
        kept = torch.empty(size, dtype=torch.float32, device="cpu")
        setattr(_memory, name, kept)
    return kept
