"""Mean confidence in percent: the largest softmax value of each attacked example, whether right or wrong."""

import math

from moat.reporting.intervals import NORMAL_QUANTILE, over_seeds, same_number

READS = ("rows",)
UNIT = "%"


def wanted(cell):
    return [("confidence", cell.settings)]


def measure(cell, runs, results):
    moments = [results.statistic("confidence", run, cell.suite, cell.settings) for run in runs]
    n = same_number([n for *_, n in moments], where=f"{cell.study}-{cell.table}: {cell.row} x {cell.column}")
    means = [mean for mean, _, _ in moments]
    centre = math.fsum(means) / len(means)
    # The examples are the same for every seed and count once.
    half = NORMAL_QUANTILE * math.sqrt(math.fsum(variance for _, variance, _ in moments) / len(moments) / n)
    return over_seeds(means, (centre - half, centre + half), n=n)


def show(value: float) -> str:
    return f"{value:.1f}"
