"""3x3 Winograd convolutions of stride 1 and 2 on a CPU; ``benchmarks/`` has their speed and rounding errors.

oneDNN no longer has a Winograd convolution for x86. NNPACK has one of stride 1, which is slower than oneDNN's direct
convolution for most layers of a ResNet and has five to fifteen times its rounding error. This one has two to three
times that error with stride 1; with stride 2, the same forwards and twice as much backwards.

The computation is in ``winograd.cpp``, compiled once per instruction set when moat is installed (``hatch_build.py``).
Without a compiler, or on a processor with neither AVX-512 nor AVX2, there is no library and convolutions stay
PyTorch's.
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
# A library is compiled for each of these, the best first.
INSTRUCTION_SETS = ("avx512_bf16", "avx512", "avx2")
# Stride -> values per channel and transformed tile: 4x4 outputs take 6x6 inputs with stride 1, 9x9 with stride 2.
POINTS = {1: 36, 2: 81}
# Types of images and maps.
TYPES = (torch.float32, torch.bfloat16)
# Channels must be a multiple of this; filters are padded to one.
LANES = 8
# With fewer tiles than this (by stride), a large weight takes longer to read than to compute with.
MIN_TILES, LARGE_WEIGHT = {1: 4, 2: 8}, 2**20
# Type and stride -> the fraction of the tiles' area that must lie within the map; the rest is wasted.
# oneDNN multiplies twice as fast in bfloat16, which leaves stride 2 nothing to gain.
MIN_COVERAGE = {
    (torch.float32, 1): 0.0,
    (torch.float32, 2): 0.75,
    (torch.bfloat16, 1): 0.5,
    (torch.bfloat16, 2): math.inf,
}
# Largest weight whose strided input gradient in bfloat16 is faster than oneDNN's.
MAX_STRIDED_BF16_WEIGHT = 2**15

_buffers = threading.local()


def source_hash() -> str:
    """Identifies the source that a library was compiled from."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]


def library_path(instructions: str, folder: Path = SOURCE.parent / "compiled") -> Path:
    """The library for one of ``INSTRUCTION_SETS``."""
    return folder / f"winograd_{instructions}.so"


def available() -> tuple[str, ...]:
    """The ``INSTRUCTION_SETS`` of this processor as torch sees it (``ATEN_CPU_CAPABILITY`` can lower that)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return INSTRUCTION_SETS[2:] if capability == "AVX2" else ()
    converts = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return INSTRUCTION_SETS if converts() else INSTRUCTION_SETS[1:]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library for this processor; None if there is none, or if it was compiled from another source."""
    path = next((path for path in map(library_path, available()) if path.exists()), None)
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
    """The instruction set that the compiled convolution uses; None if convolutions are PyTorch's."""
    if library() is None:
        return None
    return next(name for name in INSTRUCTION_SETS if Path(library()._name) == library_path(name))


def supports(weight: torch.Tensor, stride: Sequence[int], dilation: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether :func:`convolve` can compute the convolution with this weight (filters, channels, height, width)."""
    if weight.device.type != "cpu" or weight.dtype not in TYPES or weight.shape[2:] != (3, 3):
        return False
    if weight.shape[1] % LANES or set(dilation) != {1} or len(set(stride)) > 1 or stride[0] not in POINTS:
        return False
    return padding[0] == padding[1] and padding[0] in (0, 1, 2) and library() is not None


def is_faster(weight: torch.Tensor, x: torch.Tensor, padding: int, stride: int = 1) -> bool:
    """Whether :func:`convolve` is faster than PyTorch for images ``x`` (B, C, H, W)."""
    size = _output_size(x, padding, stride)
    tiles = _tiles(len(x), size)
    if weight.numel() >= LARGE_WEIGHT and tiles < MIN_TILES[stride]:
        return False
    return len(x) * math.prod(size) >= MIN_COVERAGE[x.dtype, stride] * 16 * tiles


def strided_gradient_is_faster(weight: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether :func:`strided_gradient` is faster than PyTorch; ``weight`` is the convolution's."""
    if weight.numel() >= LARGE_WEIGHT and count_tiles(gradient, 1) < MIN_TILES[2]:
        return False
    return gradient.dtype == torch.float32 or weight.numel() <= MAX_STRIDED_BF16_WEIGHT


def count_tiles(x: torch.Tensor, padding: int, stride: int = 1) -> int:
    """Number of 4x4 output tiles in the convolution of ``x`` (B, C, H, W)."""
    return _tiles(len(x), _output_size(x, padding, stride))


def _tiles(images: int, size: tuple[int, int]) -> int:
    return images * math.prod(-(-side // 4) for side in size)


def _output_size(x: torch.Tensor, padding: int, stride: int) -> tuple[int, int]:
    height, width = ((size + 2 * padding - 3) // stride + 1 for size in x.shape[2:])
    return height, width


def transform_weight(weight: torch.Tensor, *, stride: int = 1, reuse_buffer: bool = False) -> torch.Tensor:
    """The weight (filters, channels, 3, 3) in the layout of :func:`convolve`: float32, rounded once from float64.

    Args:
        stride: of the convolution, or of the one whose gradient is computed: 1 or 2.
        reuse_buffer: write to this thread's buffer; the next such call overwrites the result.
    """
    filters, channels = _padded(len(weight)), weight.shape[1]
    if filters > len(weight):
        weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, filters - len(weight)))
    weight = weight.detach().float()
    size = POINTS[stride] * filters * channels
    found = _buffer("weight", size)[:size] if reuse_buffer else weight.new_empty(size)
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
    relu_mask: torch.Tensor | None = None,
    gate_bias: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """``relu(conv2d(x where mask > 0) + bias + residual)`` in channels last (B, filters, H', W'), without gradient.

    With ``relu_mask`` the result is 0 where the mask is 0 or below, and is returned with the sums over each image of
    ``result * (2 * relu_mask - gate_bias)``, float32 (B,).

    In bfloat16 all sums are float32, and the result is rounded once.

    An image's result depends neither on the other images nor on the number of threads. A NaN pixel makes results up to
    five pixels away NaN.

    Args:
        x: (B, channels, H, W), float32 or bfloat16.
        weight: from :func:`transform_weight` with the same stride.
        padding: zeros around the image.
        mask: in the shape and type of ``x``, which counts as 0 where the mask is 0 or below.
        residual, relu_mask: in the shape and type of the result.
        gate_bias: (filters,), float32.
    """
    size = _output_size(x, padding, stride)
    products = None
    if relu_mask is not None:
        products = x.new_empty(len(x), _tiles(1, size), dtype=torch.float32)
    after = {"bias": bias, "residual": residual, "relu": relu, "relu_mask": relu_mask, "gate_bias": gate_bias}
    y = _call_library(x, weight, filters, size, padding=padding, stride=stride, mask=mask, products=products, **after)
    return y if products is None else (y, products.sum(1))


def strided_gradient(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    channels: int,
    size: Sequence[int],
    *,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The input gradient (B, channels, *size), channels last, of a convolution with stride 2 and padding 1.

    Args:
        gradient: of the convolution's output (B, filters, H', W'), float32 or bfloat16.
        weight: the convolution's, mirrored (channels, filters, 3, 3), from :func:`transform_weight` with stride 2.
        mask: in the shape and type of ``gradient``, which counts as 0 where the mask is 0 or below.
    """
    return _call_library(gradient, weight, channels, size, padding=0, stride=-2, mask=mask)


def _call_library(
    x, weight, filters: int, size, *, padding, stride, mask,
    bias=None, residual=None, relu=False, relu_mask=None, gate_bias=None, products=None,
) -> torch.Tensor:  # fmt: skip
    """``moat_winograd_convolve``; stride -2 is the gradient of stride 2."""
    x, mask, residual, relu_mask = (
        each if each is None else each.contiguous(memory_format=torch.channels_last)
        for each in (x, mask, residual, relu_mask)
    )
    batch, channels, *of_x = x.shape
    padded = _padded(filters)
    if padded > filters and not (bias is residual is relu_mask is None):
        raise ValueError(f"a bias, residual or mask of {filters} filters: only multiples of {LANES} may have one")
    if weight.numel() != POINTS[abs(stride)] * channels * padded:
        raise ValueError(f"images of {channels} channels do not fit the weight, which was transformed for others")
    y = torch.empty((batch, padded, *size), dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
    if y.numel():
        threads = torch.get_num_threads()
        scratch = _buffer("scratch", _scratch_size("moat_winograd_scratch", channels, padded, stride, threads))
        bias = bias if bias is None else bias.float()
        places = [None if each is None else each.data_ptr() for each in (x, mask, weight, bias, residual, y)]
        sizes = (batch, *of_x, channels, *size, padded, padding, stride, relu, x.dtype == torch.bfloat16, threads)
        more = (None if each is None else each.data_ptr() for each in (relu_mask, gate_bias, products))
        library().moat_winograd_convolve(*places, *sizes, scratch.data_ptr(), *more)
    return y if padded == filters else y[:, :filters].contiguous(memory_format=torch.channels_last)


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, *, padding: int = 1) -> torch.Tensor:
    """The gradient of the weight of ``conv2d(x, weight)``: (filters, channels, 3, 3), float32, channels last.

    Channels and filters must be multiples of 8.

    Args:
        x: (B, channels, H, W), float32 or bfloat16.
        gradient: of the convolution's output (B, filters, H', W'), in x's type.
    """
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    (batch, channels, height, width), filters = x.shape, gradient.shape[1]
    shape, last = (filters, channels, 3, 3), torch.channels_last
    found = torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=last)
    threads = torch.get_num_threads()
    scratch = _buffer("scratch", _scratch_size("moat_winograd_gradient_scratch", channels, filters, threads))
    sizes = (batch, height, width, channels, *gradient.shape[2:], filters, padding, x.dtype == torch.bfloat16, threads)
    places = (each.data_ptr() for each in (x, gradient, found))
    library().moat_winograd_weight_gradient(*places, *sizes, scratch.data_ptr())
    return found


@functools.cache
def _scratch_size(function: str, *sizes: int) -> int:
    """In floats."""
    return getattr(library(), function)(*sizes)


def _padded(filters: int) -> int:
    """The number of filters that are computed."""
    return -(-filters // LANES) * LANES


def _buffer(name: str, size: int) -> torch.Tensor:
    """This thread's buffer of at least ``size`` floats: always the same memory, so that it stays in the cache."""
    buffer = getattr(_buffers, name, None)
    if buffer is None or buffer.numel() < size:
        buffer = torch.empty(size, dtype=torch.float32, device="cpu")
        setattr(_buffers, name, buffer)
    return buffer
