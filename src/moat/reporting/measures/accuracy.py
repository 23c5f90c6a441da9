"""Accuracy in percent: of the examples that are right under all settings, or the mean over the settings."""

from moat.reporting.intervals import summarise, summarise_means

READS = ("rows",)
UNIT = "%"


def wanted(cell):
    return [(cell.aggregate, cell.settings)]


def measure(cell, runs, results):
    found = [results.statistic(cell.aggregate, run, cell.suite, cell.settings) for run in runs]
    return _AGGRECHECKS[cell.aggregate](found, where=f"{cell.study}-{cell.table}: {cell.row} x {cell.column}")


def show(value: float) -> str:
    return f"{value:.1f}"


_AGGRECHECKS = {"worst": summarise, "mean": summarise_means}
