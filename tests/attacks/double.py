"""Nets for tests that are the same on every processor."""

import contextlib
import copy

import torch
from torch import nn


@contextlib.contextmanager
def double():
    """Parameters are drawn in float64 inside the block; train there, too, on images in float64.

    In float32, every kind of processor rounds, and even draws, in its own way: after some epochs each has a net of its
    own, and what a test finds on it is chance. In float64 they differ in the last digits, which float32 does not have.
    """
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class InDouble(nn.Module):
    """A net that computes in float64 between images and logits in float32: rounding decides no gradient's sign."""

    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net).double()

    def forward(self, x):
        return self.net(x.double()).float()
