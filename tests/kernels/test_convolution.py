"""Convolutions in training equal PyTorch's up to rounding, forwards and backwards, whichever code computes them."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from moat.kernels import convolution, for_training, winograd
from moat.kernels.convolution import FastConv2d

compiled = pytest.mark.skipif(winograd.library() is None, reason="winograd.cpp is not compiled here")

# images, channels, filters, height, width, padding
SIZES = [
    (16, 8, 8, 4, 4, 1),
    (3, 16, 32, 12, 9, 1),
    (2, 24, 8, 14, 14, 0),
    (2, 8, 16, 10, 10, 2),
    (17, 64, 64, 4, 4, 1),
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls(monkeypatch):
    """The calls of the compiled convolution."""
    served, original = [], convolution._Winograd.apply
    monkeypatch.setattr(convolution._Winograd, "apply", lambda *given: served.append(1) or original(*given))
    return served


def layer(channels: int, filters: int, padding: int = 1, **options) -> FastConv2d:
    torch.manual_seed(0)
    return FastConv2d(channels, filters, 3, **{"padding": padding, "bias": False, **options})


def gradients(conv: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output, and the gradients of images and weight."""
    x = x.clone().requires_grad_()
    y = conv(x)
    upstream = draw(*y.shape, seed=1).to(y.dtype)
    return y, *torch.autograd.grad(y, (x, conv.weight), upstream)


def plain(conv: FastConv2d) -> nn.Conv2d:
    other = copy.deepcopy(conv)
    other.__class__ = nn.Conv2d
    return other


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Relative to the size of an entry, however many products it sums."""
    assert ours.shape == theirs.shape
    assert float((ours.double() - theirs).detach().abs().max()) < tolerance * float(theirs.double().std())


@compiled
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_output_and_both_gradients_equal_pytorchs_up_to_rounding(sizes, channels_last, calls):
    count, channels, filters, height, width, padding = sizes
    conv, x = layer(channels, filters, padding), draw(count, channels, height, width)
    exact = gradients(plain(conv).double(), x.double())
    if channels_last:
        conv, x = conv.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(gradients(conv, x), exact, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs, 5e-5)
    assert calls


@compiled
@pytest.mark.parametrize("sizes", SIZES)
def test_under_autocast_maps_are_bfloat16_and_the_weight_gradient_is_float32(sizes, calls):
    count, channels, filters, height, width, padding = sizes
    conv, x = layer(channels, filters, padding), draw(count, channels, height, width)
    exact = gradients(plain(conv).double(), x.bfloat16().double())
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(conv, x)
    assert [each.dtype for each in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for each, theirs in zip(ours, exact, strict=True):
        assert_close(each, theirs, 0.05)
    assert calls


CASES = {
    "evaluation": (lambda conv, x: conv.eval()(x), 8),
    "no gradient": (lambda conv, x: torch.no_grad()(conv)(x), 8),
    "frozen": (lambda conv, x: conv.requires_grad_(False)(x), 8),
    "float64": (lambda conv, x: conv.double()(x.double()), 8),
    "few tiles": (lambda conv, x: conv(x[:3]), 8),
    "channels": (lambda conv, x: conv(x[:, :4]), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_unsupported_calls_have_pytorchs_bits(case, calls):
    call, channels = CASES[case]
    conv, x = layer(channels, 8), draw(16, 8, 8, 8)
    assert torch.equal(call(conv, x), call(plain(conv), x))
    assert not calls


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"padding": "same"},
        {"padding": 3},
    ],
    ids=str,
)
def test_unsupported_convolutions_have_pytorchs_bits(options, calls):
    conv, x = layer(8, 8, **options), draw(16, 8, 8, 8)
    for ours, theirs in zip(gradients(conv, x), gradients(plain(conv), x), strict=True):
        assert torch.equal(ours, theirs)
    assert not calls


@compiled
def test_double_backward_equals_pytorchs():
    conv, x = layer(8, 8), draw(16, 8, 8, 8).requires_grad_()

    def penalty(conv: nn.Module) -> tuple[torch.Tensor, ...]:
        (slope,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, conv.weight))

    for ours, theirs in zip(penalty(conv), penalty(plain(conv)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_function_transforms_see_pytorchs_operators():
    conv, x = layer(8, 8), draw(16, 8, 8, 8)

    def loss(conv: nn.Module) -> torch.Tensor:
        def of(weight):
            return torch.func.functional_call(conv, {"weight": weight}, (x,)).square().mean()

        return torch.func.grad(of)(conv.weight.detach())

    assert torch.equal(loss(conv), loss(plain(conv)))


@compiled
def test_batched_gradients_equal_pytorchs():
    conv, x = layer(8, 8), draw(16, 8, 8, 8).requires_grad_()
    upstream = draw(3, 16, 8, 8, 8, seed=1)

    def batched(conv: nn.Module) -> torch.Tensor:
        return torch.autograd.grad(conv(x), x, upstream, is_grads_batched=True)[0]

    torch.testing.assert_close(batched(conv), batched(plain(conv)), rtol=1e-4, atol=1e-5)


def test_flop_counters_and_forward_mode_see_pytorchs_operators(calls):
    conv, x = layer(8, 8), draw(16, 8, 8, 8)
    with FlopCounterMode(display=False) as counter:
        conv(x).sum().backward()
    assert counter.get_total_flops() >= 2 * 2 * 16 * 64 * 8 * 8 * 9
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(conv(dual)).tangent.shape == x.shape
    assert not calls


def test_a_wrong_number_of_channels_raises_pytorchs_error():
    for channels in (4, 7, 16):
        with pytest.raises(RuntimeError, match=f"to have 8 channels, but got {channels} channels"):
            layer(8, 8)(draw(16, channels, 8, 8))


@compiled
def test_the_default_dtype_has_no_effect():
    x, gradient, form = draw(2, 8, 8, 8), draw(2, 8, 8, 8, seed=1), winograd.transform_weight(draw(8, 8, 3, 3))
    asked = (
        (lambda: winograd.weight_gradient(x, gradient)),
        (lambda: winograd.convolve(x, form, 8, relu_mask=x, gate_bias=x[0, :, 0, 0])),
    )
    before = [call() for call in asked]
    torch.set_default_dtype(torch.float64)
    try:
        after = [call() for call in asked]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before[0], after[0]) and all(map(torch.equal, before[1], after[1]))


@compiled
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [*SIZES, (4, 256, 256, 8, 8, 1), (1, 8, 24, 1, 1, 1), (5, 16, 48, 5, 7, 1)])
def test_the_weight_gradient_for_any_number_of_threads(sizes, threads):
    count, channels, filters, height, width, padding = sizes
    x, gradient = (
        draw(count, channels, height, width),
        draw(count, filters, height + 2 * padding - 2, width + 2 * padding - 2),
    )
    shape = filters, channels, 3, 3
    expected = torch.nn.grad.conv2d_weight(x.double(), shape, gradient.double(), padding=padding)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = winograd.weight_gradient(x, gradient, padding=padding)
        again = winograd.weight_gradient(x, gradient, padding=padding)
        half = winograd.weight_gradient(x.bfloat16(), gradient.bfloat16(), padding=padding)
        rounded = winograd.weight_gradient(x.bfloat16().float(), gradient.bfloat16().float(), padding=padding)
    finally:
        torch.set_num_threads(before)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, expected, 5e-5)
    # The order of summation is fixed, and bfloat16 is summed in float32.
    assert torch.equal(found, again) and torch.equal(half, rounded)


@compiled
def test_the_weight_gradient_of_an_empty_batch_is_zero():
    assert torch.equal(winograd.weight_gradient(draw(0, 8, 4, 4), draw(0, 8, 4, 4)), torch.zeros(8, 8, 3, 3))


@compiled
def test_a_net_trains_alike_with_it_and_without(monkeypatch):
    """Ten steps: the losses differ by rounding only."""
    from moat.models import nets

    def losses(few: int) -> list[float]:
        monkeypatch.setattr(convolution, "MIN_TILES", few)
        torch.manual_seed(0)
        net, x, y = (
            for_training(nets.build("resnet18", 10, width=1 / 8)),
            draw(16, 3, 32, 32).sigmoid(),
            torch.arange(16) % 10,
        )
        optimizer, found = torch.optim.SGD(net.parameters(), 0.05), []
        for _ in range(10):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    ours, theirs = losses(convolution.MIN_TILES), losses(10**9)
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=1e-3) and ours[-1] < 0.9 * ours[0]


@pytest.mark.parametrize(("channels", "strides"), [(3, [(1, 1)]), (4, [(1, 1)]), (12, [(1, 1)]), (8, []), (16, [])])
def test_a_strided_1x1_convolution_of_few_channels_chooses_its_pixels_first(monkeypatch, channels, strides):
    """Without AVX-512, oneDNN writes beyond its buffer, and Python ends some calls later."""
    called, original = [], F.conv2d

    def conv2d(x, weight, bias, stride, *more):
        called.append(stride)
        return original(x, weight, bias, stride, *more)

    monkeypatch.setattr(convolution.F, "conv2d", conv2d)
    definition = nn.Conv2d(channels, 8, 1, stride=2, bias=False)
    x = draw(64, channels, 8, 8).contiguous(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(definition).double(), x.double())
    called.clear()
    twin = for_training(copy.deepcopy(definition)).train()
    assert (type(twin) is FastConv2d) == bool(strides)
    if strides:
        for found, right in zip(gradients(twin, x), expected, strict=True):
            torch.testing.assert_close(found, right.float(), rtol=1e-4, atol=1e-4)
    assert called == strides
