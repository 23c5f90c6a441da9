"""What `moat bench` measures: one module per benchmark. A module's name is that of the benchmark.

It has ``HELP`` (one line), ``add_arguments(parser)``, ``measure(arguments)``, which returns JSON content whose
``rows`` are mappings, and ``COLUMNS``, those of a row's keys that people want to see. Modules in ``_SHARED`` are none.
Rows that answer to a target (``benchmarks/targets.yaml``) are made by :mod:`moat.benchmarking.records`.
"""

import pkgutil

_SHARED = {
    "grouped",
    "masked",
    "models",
    "narrow",
    "peers",
    "plain",
    "records",
    "textbook",
    "timing",
    "trained",
    "updates",
}


def names() -> list[str]:
    """The benchmarks, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)
