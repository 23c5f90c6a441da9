"""Nets for tests that are the same on every processor."""

import contextlib

import torch


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
