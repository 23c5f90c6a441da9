"""Common corruptions, generated: the 19 of CIFAR-10-C and of ImageNet-C at five severities.

One module per kind of corruption; its ``CORRUPTIONS`` names the functions. ``corrupt`` is loaded on first use, so
that :mod:`moat.data.corruptions.severities` (names and parameters) needs no numpy.
"""

import importlib

__all__ = ["corrupt"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.generate"), name)
