"""The tiny project that the methods are trained in, here on two devices."""

from tiny_methods import one_thread, tiny

__all__ = ["one_thread", "tiny"]
