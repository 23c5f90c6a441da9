"""The tiny project that the methods are tested in."""

from tiny_methods import one_thread, tiny

__all__ = ["one_thread", "tiny"]
