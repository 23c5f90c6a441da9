"""Convolutions compute the sum and relu after them, only if nothing else uses the values between."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat import models
from moat.attacks import AttackCopy, for_attack
from moat.kernels import winograd
from moat.kernels.fusing import fuse
from moat.kernels.packed import PackedConv2d
from moat.kernels.tracing import Tracer


def conv(*sizes, **options):
    return PackedConv2d.of(nn.Conv2d(*(sizes or (8, 8, 3)), **{"padding": 1, **options}).requires_grad_(False))


class Net(nn.Module):
    """Two convolutions, and a function that computes the forward pass with them."""

    def __init__(self, forward, **more):
        super().__init__()
        self.a, self.b, self._calls = conv(), conv(), forward
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x):
        return self._calls(self, x)


def with_operators(net, x):
    total = net.a(x)
    total += x
    return F.relu(total)


def written_between(net, x):
    h = net.a(x)
    y = net.b(h)
    return F.relu(h, inplace=True) + y


# Forward pass, and the expected set of (convolution, takes a sum, takes a relu).
FUSED = {
    "relu": (lambda net, x: F.relu(net.a(x)), {("a", False, True)}),
    "torch.relu": (lambda net, x: torch.relu(net.a(x)), {("a", False, True)}),
    "a module relu": (lambda net, x: net.relu(net.a(x)), {("a", False, True)}),
    "sum": (lambda net, x: net.a(x) + x, {("a", True, False)}),
    "sum, then relu": (lambda net, x: F.relu(x + net.a(x)), {("a", True, True)}),
    "in place": (with_operators, {("a", True, True)}),
    "block": (lambda net, x: F.relu(net.b(F.relu(net.a(x))) + x), {("a", False, True), ("b", True, True)}),
    "behind an identity": (lambda net, x: F.relu(net.same(net.a(x)) + x), {("a", True, True)}),
    "two convolutions": (lambda net, x: net.small(x) + net.a(x), {("a", True, False)}),
    "the other summand is later": (lambda net, x: net.a(x) + torch.sin(net.b(x)), {("a", True, False)}),
    "used twice": (lambda net, x: (lambda y: F.relu(y) + y)(net.a(x)), set()),
    "called twice": (lambda net, x: F.relu(net.a(F.relu(net.a(x)))), {("a", False, True)}),
    "with itself": (lambda net, x: (lambda y: y + y)(net.a(x)), set()),
    "a number": (lambda net, x: F.relu(net.a(x) + 1), set()),
    "a factor": (lambda net, x: torch.add(net.a(x), x, alpha=2), set()),
    "another function": (lambda net, x: torch.sigmoid(net.a(x)), set()),
    "its input may be overwritten": (lambda net, x: net.a(x) + torch.sin(x), set()),
    "its input is overwritten": (written_between, set()),
}


def made_of(net):
    """(convolution, takes a sum, takes a relu) of each call in the net's forward pass now."""
    calls = [node for node in Tracer().trace(net).nodes if node.op == "call_module"]
    found = {(str(node.target), len(node.args) > 1, bool(node.kwargs)) for node in calls}
    return {each for each in found if any(each[1:])}


@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused(name):
    forward, expected = FUSED[name]
    torch.manual_seed(0)
    inner = Net(forward, relu=nn.ReLU(), same=nn.Identity(), small=conv(8, 8, 1, padding=0))
    net = nn.Sequential(inner).eval()
    x = torch.randn(3, 8, 9, 9)
    before = net(x.clone())
    fuse(net)
    assert made_of(net) == {(f"0.{name}", *takes) for name, *takes in expected}
    # A relu at 0 may go either way: values differ by rounding only.
    torch.testing.assert_close(net(x.clone()), before, rtol=0, atol=1e-5)
    assert type(net[0]) is Net and [name for name, _ in net[0].named_children()] == ["a", "b", "relu", "same", "small"]


def test_hooks_are_still_called():
    net = nn.Sequential(nn.Sequential(conv(), nn.Sequential(nn.ReLU())))
    called = []
    net[0][1].register_forward_hook(lambda *_: called.append("inside"))
    fuse(net)
    net(torch.randn(1, 8, 4, 4))
    assert set(called) == {"inside"} and not made_of(net)
    called.clear()
    net = nn.Sequential(nn.Sequential(conv(), nn.ReLU()))
    net[0][0].register_forward_hook(lambda *_: called.append("convolution"))
    fuse(net)
    net(torch.randn(1, 8, 4, 4))
    assert called == ["convolution"] and made_of(net) == {("0.0", False, True)}


class Counting(nn.Module):
    """Alternates between two forward passes."""

    def __init__(self):
        super().__init__()
        self.block, self.conv, self.calls = nn.Sequential(conv(), nn.ReLU()), conv(), 0

    def forward(self, x):
        self.calls += 1
        return F.relu(self.conv(self.block(x))) if self.calls % 2 else self.conv(self.block(x))


class Chance(Counting):
    def forward(self, x):
        return F.relu(self.conv(self.block(x))) if self.draw() < 0.5 else self.conv(self.block(x))


@pytest.mark.parametrize("draw", [None, random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_a_forward_that_varies_is_kept(draw):
    torch.manual_seed(0)
    net = nn.Sequential(Counting() if draw is None else Chance())
    net[0].draw = draw
    fuse(net)
    assert "forward" not in vars(net[0]) and "forward" in vars(net[0].block)
    x = torch.randn(1, 8, 4, 4)
    assert {bool((net(x) < 0).any()) for _ in range(40)} == {True, False}


class Scaled(nn.Module):
    """Uses a buffer of its own, which Module.to replaces."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(conv(), nn.ReLU())
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return self.block(x * self.scale)


def test_a_module_that_uses_its_own_tensors_is_kept():
    net = Scaled()
    fuse(net)
    assert "forward" not in vars(net) and "forward" in vars(net.block)
    net.scale = torch.zeros(1)
    torch.testing.assert_close(net(torch.ones(1, 8, 4, 4)), net.block(torch.zeros(1, 8, 4, 4)))


@pytest.mark.skipif(winograd.library() is None, reason="winograd.cpp is not compiled here")
@pytest.mark.parametrize(
    ("arch", "sums", "relus"),
    [("resnet18", 8, 17), ("preact-resnet18", 8, 8), ("wrn-28-10", 12, 12), ("vgg19", 0, 16), ("resnet50", 5, 24)],
)
def test_convolutions_of_nets_take_over_sums_and_relus(arch, sums, relus):
    """The number of compiled convolutions of an attack copy that take a sum, and that take a relu.

    Of every block of a ResNet the last one takes the sum and a relu, the first a relu; so does the stem: 8 + 8 + 1.
    """
    copied = for_attack(models.build(arch, 10, width=0.25).eval())
    calls = [node for node in Tracer().trace(copied).nodes if node.op == "call_module"]
    assert sum(len(node.args) > 1 for node in calls) == sums
    assert sum("relu" in node.kwargs for node in calls) == relus


@pytest.mark.parametrize("arch", ["resnet18", "preact-resnet18", "wrn-28-10", "vgg19", "resnet50"])
def test_nets(arch):
    torch.manual_seed(0)
    net = models.build(arch, 10, width=0.25).eval()
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(for_attack(net)(x), net(x), rtol=1e-3, atol=1e-4)


def test_copies_of_a_fused_net_are_independent():
    torch.manual_seed(0)
    copied = AttackCopy(models.build("resnet18", 10, width=0.125)).refresh()
    x = torch.rand(2, 3, 32, 32)
    expected = copied(x)
    other = copy.deepcopy(copied)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(other(x), expected)
    assert not copied(x).any()
