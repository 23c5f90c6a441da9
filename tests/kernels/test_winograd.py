"""The compiled convolution equals PyTorch's up to rounding; an image's result depends on that image alone."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from moat.kernels import winograd
from moat.kernels.packed import PackedWeight

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(winograd.library() is None, reason="winograd.cpp is not compiled here")

# images, channels, filters, height, width, padding, stride
SIZES = [
    (1, 8, 8, 4, 4, 1, 1),
    (2, 8, 24, 32, 32, 1, 1),
    (3, 16, 16, 32, 32, 1, 1),
    (5, 16, 48, 5, 7, 1, 1),  # 16 lanes, a panel of two and one of one; tiles that hang over
    (2, 24, 16, 9, 6, 0, 1),
    (2, 40, 8, 1, 1, 1, 1),
    (1, 8, 16, 3, 3, 0, 1),  # a single pixel
    (2, 16, 32, 6, 5, 2, 1),
    (7, 64, 64, 8, 8, 1, 1),  # seven tiles are left over
    (9, 128, 64, 4, 4, 1, 1),
    (1, 8, 8, 8, 8, 1, 2),
    (3, 16, 32, 32, 32, 1, 2),
    (5, 16, 48, 5, 7, 1, 2),
    (2, 24, 16, 9, 6, 0, 2),
    (2, 40, 8, 1, 1, 1, 2),
    (1, 8, 16, 4, 4, 0, 2),  # a last row and column that no filter reaches
    (2, 16, 32, 6, 5, 2, 2),
    (9, 128, 64, 4, 4, 1, 2),
]


def images(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def case(count, channels, filters, height, width, padding, stride=1):
    torch.manual_seed(count * channels + width)
    x, weight = images(count, channels, height, width), torch.randn(filters, channels, 3, 3) / (9 * channels) ** 0.5
    expected = F.conv2d(x.double(), weight.double(), padding=padding, stride=stride)
    return x, weight, expected


def form_and_options(weight, sizes):
    """The transformed weight, and how to call :func:`winograd.convolve` with it."""
    padding, stride = sizes[-2:]
    return winograd.transform_weight(weight, stride=stride), {"padding": padding, "stride": stride}


@compiled
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_a_direct_convolution(sizes):
    x, weight, expected = case(*sizes)
    form, options = form_and_options(weight, sizes)
    y = winograd.convolve(x, form, len(weight), **options)
    assert y.shape == expected.shape and y.is_contiguous(memory_format=torch.channels_last)
    # The sums have about unit size; a wrong tap or pixel would change them by a tenth.
    assert (y - expected).abs().max() < 1e-5


@compiled
@pytest.mark.parametrize(("stride", "times"), [(1, 4), (2, 1.2)])
def test_the_rounding_error_relative_to_a_direct_convolution(stride, times):
    torch.manual_seed(0)
    x, weight = images(8, 64, 16, 16).relu(), torch.randn(64, 64, 3, 3) / 24
    expected = F.conv2d(x.double(), weight.double(), padding=1, stride=stride)
    # With the points 0, 1, -1, 2, -2 it would be five times as large.
    ours = winograd.convolve(x, winograd.transform_weight(weight, stride=stride), 64, stride=stride) - expected
    theirs = F.conv2d(x, weight, padding=1, stride=stride) - expected
    assert ours.square().mean() < (times * theirs.square().mean().sqrt()) ** 2


# Images, channels, filters, height, width of a convolution with stride 2.
STRIDED = [(3, 16, 32, 32, 32), (5, 24, 8, 7, 5), (2, 8, 16, 1, 2), (9, 64, 128, 8, 8), (1, 3, 16, 9, 10)]


@compiled
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", STRIDED)
def test_the_gradient_of_a_strided_convolution(sizes, masked):
    x, weight, y = case(*sizes, 1, 2)
    gradient, mask = images(*y.shape), images(*y.shape) if masked else None
    form = winograd.transform_weight(weight.flip(2, 3).transpose(0, 1), stride=2)
    found = winograd.strided_gradient(gradient, form, x.shape[1], x.shape[2:], mask=mask)
    wide, seen = x.double().requires_grad_(), gradient if mask is None else torch.where(mask > 0, gradient, 0)
    (expected,) = torch.autograd.grad(F.conv2d(wide, weight.double(), padding=1, stride=2), wide, seen.double())
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@compiled
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("sizes", STRIDED)
def test_that_gradient_depends_on_its_image_alone_and_is_rounded_once_in_bfloat16(sizes, threads):
    x, weight, y = case(*sizes, 1, 2)
    gradient = images(*y.shape, dtype=torch.bfloat16)
    form = winograd.transform_weight(weight.flip(2, 3).transpose(0, 1), stride=2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        narrow = winograd.strided_gradient(gradient, form, x.shape[1], x.shape[2:])
    finally:
        torch.set_num_threads(before)
    for one, found in zip(gradient.split(1), narrow, strict=True):
        assert torch.equal(winograd.strided_gradient(one.float(), form, x.shape[1], x.shape[2:])[0].bfloat16(), found)


@compiled
@pytest.mark.parametrize("dtype", winograd.TYPES)
@pytest.mark.parametrize("given", ["nothing", "bias", "mask", "residual", "relu", "all"])
def test_mask_bias_residual_and_relu(given, dtype):
    torch.manual_seed(0)
    x, weight = images(3, 16, 9, 10, dtype=dtype), torch.randn(24, 16, 3, 3) / 12
    mask, residual = images(3, 16, 9, 10, dtype=dtype), images(3, 24, 9, 10, dtype=dtype)
    bias = torch.randn(24)
    options = {"bias": bias, "mask": mask, "residual": residual, "relu": True}
    options = options if given == "all" else {given: options[given]} if given in options else {}
    y = winograd.convolve(x, winograd.transform_weight(weight), 24, **options)
    seen = torch.where(mask > 0, x, 0) if "mask" in options else x
    expected = F.conv2d(seen.double(), weight.double(), options.get("bias", bias * 0).double(), padding=1)
    expected = expected + residual if "residual" in options else expected
    expected = expected.relu() if "relu" in options else expected
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 0, atol=5e-6)


@compiled
@pytest.mark.parametrize("sizes", SIZES)
def test_bfloat16_is_the_float32_result_rounded_once(sizes):
    x, weight, _ = case(*sizes)
    x, (form, options) = x.bfloat16(), form_and_options(weight, sizes)
    narrow, wide = (winograd.convolve(each, form, len(weight), **options) for each in (x, x.float()))
    assert torch.equal(narrow, wide.bfloat16())


@compiled
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_an_image_alone_has_the_same_bits(sizes, threads):
    x, weight, _ = case(*sizes)
    form, options = form_and_options(weight, sizes)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = winograd.convolve(x, form, len(weight), **options)
    finally:
        torch.set_num_threads(before)
    for one, y in zip(x.split(1), together, strict=True):
        assert torch.equal(winograd.convolve(one, form, len(weight), **options)[0], y)


@compiled
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", winograd.TYPES)
@pytest.mark.parametrize("sizes", [size for size in SIZES if size[2] % 8 == 0])
def test_the_relu_mask_and_the_gates_sums(sizes, dtype, threads):
    x, weight, _ = case(*sizes)
    x, (form, options) = x.to(dtype), form_and_options(weight, sizes)
    y = winograd.convolve(x, form, len(weight), **options)
    relu_mask, gate_bias = images(*y.shape, dtype=dtype), torch.randn(len(weight))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        masked, sums = winograd.convolve(x, form, len(weight), relu_mask=relu_mask, gate_bias=gate_bias, **options)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(masked, torch.where(relu_mask > 0, y, 0))
    wide = winograd.convolve(x.float(), form, len(weight), **options)
    factors = 2 * relu_mask.double() - gate_bias.double()[:, None, None]
    expected = (torch.where(relu_mask > 0, wide.double(), 0) * factors).sum((1, 2, 3))
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-3)


@compiled
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", winograd.TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_result(value, dtype, relu):
    x, weight = torch.zeros(2, 8, 12, 12, dtype=dtype), torch.ones(8, 8, 3, 3)
    x[0, 3, 5, 5] = value
    y = winograd.convolve(x, winograd.transform_weight(weight), 8, relu=relu)
    assert not y[0, :, 4:7, 4:7].isfinite().any()
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    masked = winograd.convolve(torch.ones_like(x), winograd.transform_weight(weight), 8, mask=torch.full_like(x, value))
    assert masked.isfinite().all() and masked.min() > 30


@compiled
def test_filters_that_are_no_multiple_of_8():
    x, weight, expected = case(2, 16, 3, 9, 9, 1)
    y = winograd.convolve(x, winograd.transform_weight(weight), 3)
    assert y.shape == expected.shape and y.is_contiguous(memory_format=torch.channels_last)
    assert (y - expected).abs().max() < 5e-6
    with pytest.raises(ValueError, match="3 filters"):
        winograd.convolve(x, winograd.transform_weight(weight), 3, torch.zeros(3))


@compiled
@pytest.mark.parametrize("channels", [8, 24])
def test_images_that_do_not_fit_the_weight_raise_an_error(channels):
    form = winograd.transform_weight(torch.randn(16, 16, 3, 3))
    with pytest.raises(ValueError, match=f"images of {channels} channels"):
        winograd.convolve(images(2, channels, 8, 8), form, 16)


@compiled
def test_inputs_may_have_any_strides():
    x, weight, expected = case(2, 16, 16, 8, 8, 1)
    form = winograd.transform_weight(weight.contiguous(memory_format=torch.channels_last))
    for each in (x.contiguous(), x.flip(3).flip(3), x.repeat(2, 1, 1, 1)[::2][:2]):
        expected = F.conv2d(each.double(), weight.double(), padding=1)
        assert (winograd.convolve(each, form, 16) - expected).abs().max() < 5e-6
    assert winograd.convolve(x[:0], form, 16).shape == (0, 16, 8, 8)


SUPPORTED = [
    ((16, 8, 3, 3), 1, 1, 1, True),
    ((3, 8, 3, 3), 1, 1, 1, True),
    ((16, 12, 3, 3), 1, 1, 1, False),
    ((16, 8, 1, 1), 1, 1, 0, False),
    ((16, 8, 5, 5), 1, 1, 2, False),
    ((16, 8, 3, 3), 2, 1, 1, True),
    ((16, 8, 3, 3), 3, 1, 1, False),
    ((16, 8, 3, 3), 1, 2, 1, False),
    ((16, 8, 3, 3), 1, 1, 3, False),
]


@compiled
@pytest.mark.parametrize(("shape", "stride", "dilation", "padding", "expected"), SUPPORTED)
def test_supported_convolutions(shape, stride, dilation, padding, expected):
    weight = torch.zeros(shape)
    assert winograd.supports(weight, [stride] * 2, [dilation] * 2, [padding] * 2) is expected
    assert not winograd.supports(weight.double(), [stride] * 2, [dilation] * 2, [padding] * 2)
    assert not winograd.supports(weight, [stride, stride + 1], [dilation] * 2, [padding] * 2)


@pytest.mark.parametrize("library", [winograd.library, lambda: None], ids=["as it is", "none"])
def test_without_a_library_convolutions_are_pytorchs(library, monkeypatch):
    monkeypatch.setattr(winograd, "library", library)
    x, weight, expected = case(2, 16, 16, 8, 8, 1)
    packed, x = PackedWeight((1, 1), (1, 1)), x.requires_grad_()
    y = packed.conv2d(x, weight, None, residual=x, relu=True)
    theirs = F.relu(F.conv2d(x, weight, padding=1) + x)
    torch.testing.assert_close(y, theirs, rtol=0, atol=5e-6)
    for ours, other in zip(*(torch.autograd.grad(each.sum(), x) for each in (y, theirs)), strict=True):
        # A value at 0, to rounding, may be on either side of relu.
        assert (ours - other).abs().median() < 1e-6


def test_where_there_is_a_compiler_there_is_a_library():
    """A failed compilation during the installation must not go unnoticed."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler on this machine: convolutions are PyTorch's")
    if not winograd.available():
        pytest.skip("this processor has neither AVX-512 nor AVX2: convolutions are PyTorch's")
    assert winograd.library() is not None, "install moat again: `make clean`, then what you did"
    assert winograd.instructions() in winograd.available()


@compiled
@pytest.mark.parametrize("dtype", winograd.TYPES)
def test_all_instruction_sets_give_the_same_bits(dtype, monkeypatch):
    there = [name for name in winograd.available() if winograd.library_path(name).exists()]
    if len(there) < 2:
        pytest.skip("this processor serves one instruction set only")
    found = []
    for name in there:
        monkeypatch.setattr(winograd, "available", lambda name=name: (name,))
        winograd.library.cache_clear()
        x, weight, _ = case(2, 32, 48, 9, 9, 1)
        x, backwards = x.to(dtype), weight.flip(2, 3).transpose(0, 1)
        y = [
            winograd.convolve(x, winograd.transform_weight(weight, stride=stride), 48, stride=stride)
            for stride in (1, 2)
        ]
        form = winograd.transform_weight(backwards, stride=2)
        found.append([*y, winograd.strided_gradient(y[1], form, 32, (9, 9))])
        assert winograd.instructions() == name
    winograd.library.cache_clear()
    assert all(torch.equal(*pair) for each in found[1:] for pair in zip(found[0], each, strict=True))


@compiled
def test_a_library_of_another_source_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(winograd, "source_hash", lambda: "0" * 16)
    winograd.library.cache_clear()
    try:
        assert winograd.library() is None
    finally:
        winograd.library.cache_clear()
    assert "another winograd.cpp: install moat again" in caplog.text


@pytest.fixture
def build():
    """hatch_build.py as the installation runs it."""
    pytest.importorskip("hatchling", reason="hatchling is in the environment of a build only")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("compiler", ["false", "/there/is/no/compiler"])
def test_without_a_compiler_the_installation_succeeds(compiler, build, monkeypatch, tmp_path, capsys):
    old = tmp_path / "compiled" / "winograd_avx2.so"
    old.parent.mkdir()
    old.write_text("compiled from an earlier source")
    monkeypatch.setenv("CXX", compiler)
    assert not build.compiled(winograd.SOURCE, old, [])
    assert list(old.parent.iterdir()) == []
    assert "convolutions stay PyTorch's" in capsys.readouterr().err


def test_what_was_compiled_from_this_source_is_not_compiled_again(build, monkeypatch, tmp_path, capsys):
    library = tmp_path / "compiled" / "winograd_avx2.so"
    library.parent.mkdir()
    library.write_text(f"compiled from {winograd.source_hash()}")
    monkeypatch.setenv("CXX", "false")
    assert build.compiled(winograd.SOURCE, library, [])
    # Older than the file that says how it is compiled.
    os.utime(library, (1, 1))
    assert not build.compiled(winograd.SOURCE, library, []) and not library.exists()


def test_hatch_build_names_the_same_source_and_instruction_sets(build):
    assert tuple(build.INSTRUCTION_SETS) == winograd.INSTRUCTION_SETS
    assert (ROOT / build.SOURCE) == winograd.SOURCE
