"""One row per cell of a table: what was published, what was measured, and how far they agree.

Percent points throughout. For one seed the interval is Wilson's 95 % interval on the examples. For k seeds the
measured value is the mean over the seeds; every seed sees the same examples, so these are counted once: the
half widths are Wilson's for the mean accuracy on n examples and Student's t interval of the mean between
seeds (k - 1 degrees of freedom), added in quadrature on each side and cut to [0, 100].
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moat.config import paths
from moat.config.grid import Cell, Run, Table
from moat.errors import DataError
from moat.evaluation.clusters import MeanAccuracy
from moat.evaluation.statistics import verdict, wilson
from moat.reporting.results import Results

COLUMNS = [
    *("study", "table", "row", "column", "dataset", "arch", "method", "metric", "protocol"),
    *("published", "published_std", "measured", "measured_std", "ci_low", "ci_high", "n", "seeds"),
    *("verdict", "gates_failed"),
]
CONFIDENCE = 0.95
VERDICTS = ("reproduced", "explained", "higher", "lower", "unverified", "not-run")


def measure_cell(cell: Cell, results: Results, scale: Mapping[str, Any]) -> dict[str, Any]:
    """The row of ``cells.csv`` for one cell; None where there is nothing to say.

    Args:
        results: where the evaluations are; best told first by :meth:`Results.expect`.
        scale: the scale's YAML; says whether its numbers may be compared with published ones.

    The verdict is ``not-run`` without an evaluation, ``unverified`` where a gate failed or seeds are missing,
    and, where there is a published number, where budget or data are not the paper's; else what
    :func:`moat.evaluation.statistics.verdict` says, and empty where nothing was published.

    Raises:
        DataError: an evaluation that is damaged, or seeds evaluated on different numbers of examples.
    """
    done = [run for run in cell.runs if results.has_evaluation(run, cell.suite)]
    row = _identity(cell)
    if not done:
        return {**row, "verdict": "not-run"}
    if cell.aggregate == "mean":
        means = [results.mean(run, cell.suite, cell.settings) for run in done]
        row |= summarise_means(means, where=_where(cell))
    else:
        row |= summarise([results.counts(run, cell.suite, cell.settings) for run in done], where=_where(cell))
    reasons = _reasons(cell, done, results, scale)
    row |= {"seeds": ";".join(str(run.seed) for run in done), "gates_failed": ";".join(reasons) or None}
    if reasons:
        row["verdict"] = "unverified"
    elif cell.published is not None:
        row["verdict"] = verdict(cell.published, row["ci_low"], row["ci_high"], row["measured"], cell.tolerance)
    return row


def summarise(counts: Sequence[tuple[int, int]], *, where: str) -> dict[str, Any]:
    """measured, measured_std, ci_low, ci_high, n of the (correct, n) of one or several seeds, in points.

    Raises:
        DataError: the seeds were evaluated on different numbers of examples; names ``where``.
    """
    n, rates = _same_size([n for _, n in counts], where), [correct / n for correct, n in counts]
    mean = math.fsum(rates) / len(rates)
    return _between(rates, n, *wilson(round(mean * n), n, confidence=CONFIDENCE))


def summarise_means(means: Sequence[MeanAccuracy], *, where: str) -> dict[str, Any]:
    """:func:`summarise` for means over settings: the examples count as :mod:`moat.evaluation.clusters` has it.

    Raises:
        DataError: the seeds were evaluated on different numbers of examples; names ``where``.
    """
    n, rates = _same_size([each.n for each in means], where), [each.mean for each in means]
    # The seeds see the same examples: together they count as no more than the fewest.
    joint = MeanAccuracy(math.fsum(rates) / len(rates), n, min(each.effective for each in means))
    return _between(rates, n, *joint.interval(CONFIDENCE))


def _same_size(sizes: Sequence[int], where: str) -> int:
    if len(set(sizes)) > 1:
        raise DataError(f"{where}: the seeds were evaluated on {sorted(set(sizes))} examples; evaluate all on the same")
    return sizes[0]


def _between(rates: Sequence[float], n: int, low: float, high: float) -> dict[str, Any]:
    """The mean of the seeds' rates, with its interval [low, high] on the examples widened by the seeds' spread."""
    mean = math.fsum(rates) / len(rates)
    spread, margin = _between_seeds(rates)
    return {
        "measured": _points(mean),
        "measured_std": None if spread is None else _points(spread),
        "ci_low": _points(max(0.0, mean - math.hypot(max(0.0, mean - low), margin))),
        "ci_high": _points(min(1.0, mean + math.hypot(max(0.0, high - mean), margin))),
        "n": n,
    }


def not_run_reason(cell: Cell, results: Results) -> str | None:
    """Why a cell has no measurement, or None where it has one."""
    if cell.not_run is not None:
        return cell.not_run
    if any(results.has_evaluation(run, cell.suite) for run in cell.runs):
        return None
    return "not evaluated yet"


def stand_ins(cell: Cell) -> list[str]:
    """What the scale put in the place of what the study names, e.g. ``dataset cifar10->digits``."""
    return [f"{kind} {original}->{getattr(cell, kind)}" for kind, original in cell.substitutes]


def table_frame(table: Table, results: Results, scale: Mapping[str, Any]):
    """All cells of a table as a DataFrame with :data:`COLUMNS`, row by row."""
    results.expect(table.cells)
    return frame([measure_cell(cell, results, scale) for cell in table.cells])


def frame(rows: Iterable[Mapping[str, Any]]):
    """Rows of cells as a DataFrame with :data:`COLUMNS`; ``n`` is an integer that may be missing."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=COLUMNS).astype({"n": "Int64"})


def read_cells(path: Path):
    """A table's long CSV.

    Raises:
        DataError: the file is missing or has other columns; names it.
    """
    import pandas as pd

    if not path.exists():
        raise DataError(f"{path}: no such file; `moat tabulate` makes it")
    content = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(content.columns) != COLUMNS:
        raise DataError(f"{path}: the columns are not those of a table of cells: {', '.join(content.columns)}")
    for name in _NUMBERS:
        content[name] = content[name].map(lambda text: float(text) if text else None).astype(float)
    return content.astype({"n": "Int64"})


def to_csv(content) -> str:
    """The text of ``cells.csv`` and its like: empty where there is no value, ``\\n`` line ends."""
    return content.to_csv(index=False, lineterminator="\n")


def count_verdicts(content) -> dict[str, int]:
    """verdict -> number of cells, in the order of :data:`VERDICTS`; ``measured`` where nothing was published."""
    verdicts = content["verdict"].fillna("").replace("", "measured")
    counts = verdicts.value_counts()
    return {name: int(counts[name]) for name in (*VERDICTS, "measured") if name in counts}


def table_paths(results: Results, study: str, name: str) -> dict[str, Path]:
    """The files of a table: suffix -> path."""
    base = results.file(paths.table(results.scale, study, name))
    return {suffix: base.with_name(f"{base.name}.{suffix}") for suffix in paths.TABLE_SUFFIXES}


_NUMBERS = ("published", "published_std", "measured", "measured_std", "ci_low", "ci_high", "n")


def _identity(cell: Cell) -> dict[str, Any]:
    names = ("study", "table", "row", "column", "dataset", "arch", "method", "metric", "protocol", "published")
    return {name: getattr(cell, name) for name in (*names, "published_std")} | {"verdict": None}


def _where(cell: Cell) -> str:
    return f"{cell.study}-{cell.table}: {cell.row} x {cell.column}"


def _reasons(cell: Cell, done: Sequence[Run], results: Results, scale: Mapping[str, Any]) -> list[str]:
    """Why the number cannot be taken at its word; empty where it can."""
    reasons = [gate for run in done for gate in results.failed_gates(run, cell.suite)]
    if len(done) < len(cell.runs):
        reasons.append("seeds-missing")
    if cell.published is not None:
        reasons += [] if scale["comparable"] else ["budget"]
        reasons += [f"stand-in {stand_in}" for stand_in in stand_ins(cell)]
        if any(results.run(run)["data"].get("official") is False for run in done):
            reasons.append("unofficial-data")
    return list(dict.fromkeys(reasons))


def _between_seeds(rates: Sequence[float]) -> tuple[float | None, float]:
    """Standard deviation between seeds and the half width of the t interval of their mean."""
    if len(rates) < 2:
        return None, 0.0
    import statistics

    from scipy.stats import t

    spread = statistics.stdev(rates)
    return spread, float(t.ppf((1 + CONFIDENCE) / 2, len(rates) - 1)) * spread / math.sqrt(len(rates))


def _points(fraction: float) -> float:
    return round(100 * fraction, 4)
