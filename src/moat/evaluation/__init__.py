"""Judging models: rows of an evaluation, statistics of those rows, and checks that a robust accuracy must pass.

``evaluate`` and ``verify`` are loaded on first use, so that :mod:`moat.evaluation.statistics` needs no torch.
"""

import importlib

_HOMES = {"evaluate": "runner", "verify": "checks", "CheckReport": "checks", "CheckResult": "checks"}

__all__ = ["CheckReport", "CheckResult", "evaluate", "verify"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
