"""What `moat bench` measures: one module per benchmark. A module's name is that of the benchmark.

It has ``HELP`` (one line), ``add_arguments(parser)``, ``measure(arguments)``, which returns JSON content whose
``rows`` are mappings, and ``COLUMNS``, those of a row's keys that people want to see. Modules in ``_SHARED`` are none.
"""

import pkgutil

_SHARED = {"models", "timing"}


def names() -> list[str]:
    """The benchmarks, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)
