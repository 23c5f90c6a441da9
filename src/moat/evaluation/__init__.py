"""Evaluation: attack a model and keep one row per example, compute statistics of the rows, run the checks.

``evaluate`` and ``verify`` are loaded on first use, so that :mod:`moat.evaluation.statistics` needs no torch.
"""

import importlib

_HOMES = {"evaluate": "runner", "verify": "checks", "CheckReport": "checks", "CheckResult": "checks"}

__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
