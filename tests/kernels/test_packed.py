"""Packed convolutions equal PyTorch's, forwards and backwards, and follow changes of their weight."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat.kernels.packed import PackedConv2d, can_be_packed

# in, out, size, stride, padding, dilation
CONVOLUTIONS = [
    (3, 16, 3, 1, 1, 1),
    (16, 3, 3, 1, 1, 1),
    (8, 24, 3, 2, 1, 1),
    (8, 24, 1, 2, 0, 1),
    (8, 24, 1, 1, 0, 1),
    (4, 5, (3, 1), 1, (1, 0), 1),
    (4, 5, 3, 1, 2, 2),
    (4, 5, 2, 1, 3, 1),  # padded further than it reaches
    (6, 6, 5, (1, 2), 2, 1),
    (8, 24, 3, 1, 1, 1),  # supported by Winograd, like those below
    (16, 32, 3, 1, 0, 1),
    (16, 16, 3, 1, 2, 1),
    (64, 64, 3, 1, 1, 1),
]


def pair(*sizes, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    plain = nn.Conv2d(*sizes, bias=bias).to(dtype).requires_grad_(False)
    return plain, PackedConv2d.of(plain)


def outcome(convolution, x):
    """Outputs, and the input gradient of their sum with a different factor for each."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = convolution(x)
    factors = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (gradient,) = torch.autograd.grad((y * factors).sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", CONVOLUTIONS)
def test_equals_the_plain_convolution(sizes, bias, memory_format):
    plain, packed = pair(*sizes, bias=bias)
    x = torch.rand(2, sizes[0], 9, 10).to(memory_format=memory_format)
    for theirs, ours in zip(outcome(plain, x), outcome(packed, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if memory_format is torch.channels_last:
        assert outcome(packed, x)[1].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (7, 8, 32, 32), (3, 8, 5, 9)])
def test_a_weight_packed_for_one_shape_works_for_all(shape):
    plain, packed = pair(8, 8, 3, 1, 1)
    outcome(packed, torch.rand(2, 8, 16, 16))
    x = torch.rand(shape)
    for theirs, ours in zip(outcome(plain, x), outcome(packed, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", CONVOLUTIONS)
def test_images_with_a_border_are_not_padded(sizes):
    plain, packed = pair(*sizes)
    x = torch.rand(2, sizes[0], 9, 10)
    expected = F.conv2d(x, plain.weight, plain.bias, plain.stride, 0, plain.dilation)
    torch.testing.assert_close(packed(x, pad=False), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: torch.mul(weight, 3, out=weight),
        lambda weight: weight.copy_(torch.ones_like(weight)),
        lambda weight: setattr(weight, "data", torch.ones_like(weight)),
        lambda weight: weight[1:].zero_(),
    ],
)
def test_a_changed_weight_is_packed_again(change):
    plain, packed = pair(4, 4, 3, 1, 1)
    x = torch.rand(2, 4, 6, 6)
    before = outcome(packed, x)
    with torch.no_grad():
        change(plain.weight)
    assert packed.weight is plain.weight
    for theirs, ours, old in zip(outcome(plain, x), outcome(packed, x), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours, old)


def test_a_new_weight_at_the_old_address_is_noticed():
    packed = pair(8, 8, 3, 1, 1)[1]
    x = torch.rand(1, 8, 8, 8)
    for value in range(1, 30):
        packed.weight = None
        packed.weight = nn.Parameter(torch.full((8, 8, 3, 3), float(value)), requires_grad=False)
        torch.testing.assert_close(packed(x), F.conv2d(x, packed.weight, packed.bias, padding=1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("sizes", CONVOLUTIONS)
def test_residual_and_relu(sizes, summed, relu):
    plain, packed = pair(*sizes)
    x = torch.rand(2, sizes[0], 9, 10)
    other = torch.rand_like(plain(x)) if summed else None

    def by_hand(x, residual=None):
        y = plain(x) if residual is None else plain(x) + residual
        return F.relu(y) if relu else y

    given = [each.clone().requires_grad_() for each in (x, other) if each is not None]
    found = []
    for call in (functools.partial(packed, relu=relu), by_hand):
        y = call(*given)
        factors = torch.linspace(-1, 1, y.numel()).view_as(y)
        found.append((y, *torch.autograd.grad((y * factors).sum(), given)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    if summed:
        (only,) = torch.autograd.grad(packed(x, given[1], relu=relu).sum(), given[1])
        torch.testing.assert_close(only, (by_hand(x, other) > 0).float() if relu else torch.ones_like(other))


def test_a_residual_of_another_shape_is_broadcast():
    plain, packed = pair(8, 8, 3, 1, 1)
    x, other = torch.rand(2, 8, 6, 6), torch.rand(8, 1, 1, requires_grad=True)
    ours, theirs = packed(x, other, relu=True), F.relu(plain(x) + other)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(each.sum(), other)[0] for each in (ours, theirs)]
    assert gradients[0].shape == other.shape
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("sizes", CONVOLUTIONS)
def test_under_autocast_it_has_autocasts_type(sizes):
    plain, packed = pair(*sizes)
    x = torch.rand(2, sizes[0], 9, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [outcome(each, x) for each in (plain, packed)]
        wide = packed(x.double().float())
    assert wide.dtype == torch.bfloat16
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


def test_types_that_do_not_match_raise_pytorchs_error():
    plain, packed = pair(8, 8, 3, 1, 1)
    x = torch.rand(2, 8, 6, 6)
    for each in (plain, packed):
        with pytest.raises(RuntimeError, match="type"):
            each(x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_follow_the_parameters(dtype):
    plain, packed = pair(4, 8, 3, 1, 1)
    x = torch.rand(2, 4, 6, 6)
    outcome(packed, x)
    packed.to(dtype)
    for theirs, ours in zip(outcome(plain.to(dtype), x.to(dtype)), outcome(packed, x.to(dtype)), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs)


def test_unsupported_calls_are_pytorchs():
    plain, packed = pair(4, 8, 3, 1, 1)
    assert torch.equal(packed(torch.rand(0, 4, 6, 6)), plain(torch.rand(0, 4, 6, 6)))
    image = torch.rand(4, 6, 6)
    assert torch.equal(packed(image), plain(image))
    packed.requires_grad_(True)
    packed(torch.rand(2, 4, 6, 6)).sum().backward()
    assert packed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: copy.deepcopy(nn.Sequential(net))[0]])
def test_copies_are_independent(copied):
    plain, packed = pair(4, 8, 3, 1, 1)
    x = torch.rand(2, 4, 6, 6)
    expected = packed(x)
    other = copied(packed)
    with torch.no_grad():
        packed.weight.zero_()
    assert torch.equal(other(x), expected)
    assert not torch.equal(packed(x), expected)


@pytest.mark.parametrize(
    ("convolution", "expected"),
    [
        (nn.Conv2d(4, 4, 3), True),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Conv2d(4, 4, 3, padding="same"), False),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), False),
        (nn.LazyConv2d(4, 3), False),
        (nn.Linear(4, 4), False),
    ],
)
def test_what_can_be_packed(convolution, expected):
    assert can_be_packed(convolution) is expected


def test_a_convolution_with_hooks_is_not_packed():
    convolution = nn.Conv2d(4, 4, 3)
    convolution.register_forward_hook(lambda module, inputs, output: output)
    assert not can_be_packed(convolution)
