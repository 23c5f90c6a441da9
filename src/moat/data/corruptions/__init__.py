"""Generate common corruptions: the 19 of CIFAR-10-C and ImageNet-C, at five severities.

There is one module per kind of corruption, whose ``CORRUPTIONS`` maps names to functions. ``corrupt`` is loaded on
first use, so that the configuration can import :mod:`moat.data.corruptions.severities` (names and parameters) without
numpy. scipy is imported in the functions that use it: it takes a second, and :mod:`moat.attacks` imports this package.
"""

import importlib

__all__ = ["corrupt"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.generate"), name)
