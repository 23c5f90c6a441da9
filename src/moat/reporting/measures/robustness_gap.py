"""Accuracy under the first setting minus that under the second, in points, on the same examples."""

import math

from moat.base.errors import ConfigError
from moat.reporting.intervals import over_seeds, paired_difference, same_number

READS = ("rows",)
UNIT = "points"


def wanted(cell):
    first, second = _pair(cell)
    return [("worst", (first,)), ("worst", (second,)), ("worst", (first, second))]


def measure(cell, runs, results):
    counts = [[results.statistic(name, run, cell.suite, settings) for name, settings in wanted(cell)] for run in runs]
    n = same_number([n for *_, (_, n) in counts], where=f"{cell.study}-{cell.table}: {cell.row} x {cell.column}")
    found = [paired_difference(both, first, second, n) for (first, _), (second, _), (both, _) in counts]
    values = [value for value, _ in found]
    mean = math.fsum(values) / len(values)
    # Every seed has the same examples: their intervals say the same thing once, about each seed's own value.
    low = mean - math.fsum(value - low for value, (low, _) in found) / len(found)
    high = mean + math.fsum(high - value for value, (_, high) in found) / len(found)
    return over_seeds(values, (low, high), n=n, limits=(-1.0, 1.0))


def show(value: float) -> str:
    return f"{value:.1f}"


def _pair(cell) -> tuple[str, str]:
    """
    Raises:
        ConfigError: not two settings; names the cell.
    """
    if len(cell.settings) != 2:
        where = f"config/studies/{cell.study}.yaml: {cell.table}: {cell.row} x {cell.column}"
        raise ConfigError(f"{where}: settings {list(cell.settings)}: a robustness_gap is between two")
    return cell.settings
