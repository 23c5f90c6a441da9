"""Measures: how the number of a cell comes from the results. One module each; its name is the measure's.

A module has

- ``READS``: a literal tuple of what it looks at: ``rows`` (an evaluation), ``record`` (run.json), ``checks``;
- ``measure(cell, runs, results)``: measured, measured_std, ci_low, ci_high, n over the finished ``runs``, or None where
  a record lacks the number;
- ``show(value)``: the number as it is printed, and ``UNIT``, what stands behind it where there is room;
- where it reads rows, ``wanted(cell)``: what it will ask of each evaluation, (statistic, settings) pairs;
- where numbers can be incomparable for a reason of their own, ``reasons(cell, runs, results)``.
"""

import importlib
import pkgutil
from types import ModuleType

from moat.base.errors import ConfigError, unknown_name
from moat.config.grid_types import Cell, Run
from moat.reporting.rows import Settings


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def get(name: str) -> ModuleType:
    """The module of a measure.

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    if name not in names():
        raise ConfigError(unknown_name(name, names(), what="measure"))
    return importlib.import_module(f"{__name__}.{name}")


def wanted(cell: Cell) -> list[tuple[str, Settings]]:
    """What will be asked of each evaluation of a cell."""
    return get(cell.measure).wanted(cell) if "rows" in cell.reads else []


def reasons(cell: Cell, runs: list[Run], results) -> list[str]:
    """Why the published number cannot be compared with this measure's, beside what holds for all measures."""
    own = getattr(get(cell.measure), "reasons", None)
    return own(cell, runs, results) if own else []
