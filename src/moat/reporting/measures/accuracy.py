"""Accuracy in percent: of the examples that are right under all settings, or the mean over the settings."""

import math

from moat.reporting.intervals import clustered, over_seeds, same_number, summarise

READS = ("rows",)
UNIT = "%"


def wanted(cell):
    return [(cell.aggregate, cell.settings)]


def measure(cell, runs, results):
    where = f"{cell.study}-{cell.table}: {cell.row} x {cell.column}"
    return _AGGREGATES[cell.aggregate](
        [results.statistic(cell.aggregate, run, cell.suite, cell.settings) for run in runs], where
    )


def show(value: float) -> str:
    return f"{value:.1f}"


def _mean(moments, where):
    """The examples are counted once, whatever the number of settings and seeds."""
    n = same_number([n for *_, n in moments], where=where)
    rates = [mean for mean, _, _ in moments]
    variance = math.fsum(variance for _, variance, _ in moments) / len(moments)
    return over_seeds(rates, clustered(math.fsum(rates) / len(rates), variance, n), n=n)


_AGGREGATES = {"worst": lambda counts, where: summarise(counts, where=where), "mean": _mean}
