"""One row per cell of a table: what was published, what was measured, and how far they agree.

A cell that a flawed protocol may explain has one more row for each such protocol, behind its own. How the intervals
come about is said in :mod:`moat.reporting.intervals`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moat.base.errors import DataError
from moat.config import paths
from moat.config.grid import Cell, Run, Table
from moat.evaluation.statistics import verdict
from moat.reporting import measures
from moat.reporting.intervals import summarise as summarise
from moat.reporting.results import Results

COLUMNS = [
    *("study", "table", "row", "column", "dataset", "arch", "method", "metric", "protocol"),
    *("published", "published_std", "measured", "measured_std", "ci_low", "ci_high", "n", "seeds"),
    *("verdict", "checks_failed"),
]
VERDICTS = ("reproduced", "explained", "above", "below", "unverified", "not-run")
CORRECT = "correct"
# What stands in checks_failed beside a verdict, and does not change it.
REMARKS = ("stale",)
# What became of a published number, and the verdicts that say so.
OUTCOMES = {
    "reproduced": ("reproduced",),
    "explained": ("explained",),
    "contradicted": ("above", "below"),
    "unverified": ("unverified",),
    "not run": ("not-run",),
}


def measure_cell(cell: Cell, results: Results, scale: Mapping[str, Any]) -> dict[str, Any]:
    """The row of ``cells.csv`` for one cell under its own protocol; None where there is nothing to say.

    Args:
        results: where the evaluations are; best told first by :meth:`Results.expect`.
        scale: the scale's YAML; says whether its numbers may be compared with published ones.

    The verdict is ``not-run`` without a measurement, ``unverified`` where a check failed or seeds are missing,
    and, where there is a published number, where budget, data or hardware are not the paper's; else what
    :func:`moat.evaluation.statistics.verdict` says, and empty where nothing was published. What is stale is marked as
    that in ``checks_failed`` and keeps its verdict: it was true of the sources that made it.

    Raises:
        DataError: an evaluation that is damaged, or seeds evaluated on different numbers of examples.
    """
    row = _identity(cell)
    if not_run_reason(cell, results) is not None:
        return {**row, "verdict": "not-run"}
    done = results.finished(cell)
    row |= measures.get(cell.measure).measure(cell, done, results)
    reasons = _reasons(cell, done, results, scale)
    said = [*reasons, *(["stale"] if results.stale(cell) else [])]
    row |= {"seeds": ";".join(str(run.seed) for run in done) or None, "checks_failed": ";".join(said) or None}
    if reasons:
        row["verdict"] = "unverified"
    elif cell.published is not None:
        row["verdict"] = _compare(cell, row)
    return row


def rows_of(cell: Cell, results: Results, scale: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row of a cell, and one for each protocol that may explain the published number.

    The cell is ``explained`` where the correct protocol clearly gives another number and a flawed one the published.
    """
    row, *flawed = (measure_cell(each, results, scale) for each in cell.each())
    if row["verdict"] in ("above", "below") and any(other["verdict"] == "reproduced" for other in flawed):
        row["verdict"] = "explained"
    return [row, *flawed]


def not_run_reason(cell: Cell, results: Results) -> str | None:
    """Why a cell has no measurement, or None where it has one."""
    if cell.not_run is not None:
        return cell.not_run
    done = results.finished(cell)
    if cell.reads and not done:
        return next((why for what, why in _MISSING.items() if what in cell.reads), "not trained yet")
    if "rows" in cell.reads:
        return does_not_apply(cell, done[0], results)
    known = measures.get(cell.measure).measure(cell, done, results) is not None
    return None if known else f"the record of the run does not say ({cell.measure})"


def does_not_apply(cell: Cell, run: Run, results: Results) -> str | None:
    """Why a number makes no sense for a run's model (attacks on a router, without one); None where it does."""
    left_out = results.not_applicable(run, cell.suite)
    for _, settings in measures.wanted(cell):
        if all(setting in left_out for setting in settings):
            return f"does not apply: {left_out[settings[0]]}"
    return None


def reasons_of(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What ``checks_failed`` of a row holds: reasons not to take its number at its word, and :data:`REMARKS`."""
    names = (row["checks_failed"] or "").split(";")
    reasons = [name for name in names if name and name not in REMARKS]
    return reasons, [name for name in names if name in REMARKS]


def stand_ins(cell: Cell) -> list[str]:
    """What the scale put in the place of what the study names, e.g. ``dataset cifar10->digits``."""
    return [f"{kind} {original}->{getattr(cell, kind)}" for kind, original in cell.substitutes]


def table_rows(table: Table, results: Results, scale: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """For each cell of a table its row, and those of the protocols that may explain it; see :func:`rows_of`."""
    results.expect(table.cells)
    return (rows_of(cell, results, scale) for cell in table.cells)


def table_frame(table: Table, results: Results, scale: Mapping[str, Any]):
    """All cells of a table as a DataFrame with :data:`COLUMNS`, row by row, explanations behind their cells."""
    return frame([row for rows in table_rows(table, results, scale) for row in rows])


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
        content[name] = content[name].map(_number)
    return frame(content.astype(object).where(content.notna(), None).to_dict("records"))


def to_csv(content) -> str:
    """The text of ``cells.csv`` and its like: empty where there is no value, ``\\n`` line ends."""
    return content.to_csv(index=False, lineterminator="\n")


def correct_rows(content):
    """One row per cell: without those of the flawed protocols, which follow their cell."""
    return content.drop_duplicates(["study", "table", "row", "column"], keep="first")


def count_verdicts(content) -> dict[str, int]:
    """verdict -> number of cells, in the order of :data:`VERDICTS`; ``measured`` where nothing was published."""
    verdicts = correct_rows(content)["verdict"].fillna("").replace("", "measured")
    counts = verdicts.value_counts()
    return {name: int(counts[name]) for name in (*VERDICTS, "measured") if name in counts}


def count_published(content) -> dict[str, int]:
    """What became of the published numbers: cells that are reproduced, explained, contradicted, unverified, not run.

    Words are not counted: what kind of mixture a method is, our code has from the paper.
    """
    import pandas as pd

    cells = correct_rows(content)
    numbers = pd.to_numeric(cells["published"], errors="coerce").notna()
    counts = cells[numbers]["verdict"].value_counts()
    return {name: sum(int(counts.get(verdict, 0)) for verdict in kinds) for name, kinds in OUTCOMES.items()}


def table_paths(results: Results, study: str, name: str) -> dict[str, Path]:
    """The files of a table: suffix -> path."""
    base = results.file(paths.table(results.scale, study, name))
    return {suffix: base.with_name(f"{base.name}.{suffix}") for suffix in paths.TABLE_SUFFIXES}


_MISSING = {"rows": "not evaluated yet", "probe": "not probed yet"}
_NUMBERS = ("published", "published_std", "measured", "measured_std", "ci_low", "ci_high", "n")


def _identity(cell: Cell) -> dict[str, Any]:
    names = ("study", "table", "row", "column", "dataset", "arch", "method", "metric", "protocol", "published")
    return {name: getattr(cell, name) for name in (*names, "published_std")} | {"verdict": None}


def _number(text: str) -> float | str | None:
    """A number; a word of a table of words as it is."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _compare(cell: Cell, row: Mapping[str, Any]) -> str:
    """By equivalence; a word that differs has been found out already."""
    if isinstance(cell.published, str):
        return "reproduced"
    return verdict(cell.published, row["ci_low"], row["ci_high"], row["measured"], cell.tolerance)


def _reasons(cell: Cell, done: Sequence[Run], results: Results, scale: Mapping[str, Any]) -> list[str]:
    """Why the number cannot be taken at its word; empty where it can."""
    reasons = _distrust(cell, done, results)
    if len(done) < len(cell.runs):
        reasons.append("seeds-missing")
    if cell.published is not None and cell.reads:
        reasons += [] if scale["comparable"] else ["budget"]
        reasons += [f"stand-in {stand_in}" for stand_in in stand_ins(cell)]
        if any((results.run(run) or {}).get("data", {}).get("official") is False for run in done):
            reasons.append("unofficial-data")
    if cell.published is not None:
        reasons += measures.reasons(cell, list(done), results)
    return list(dict.fromkeys(reasons))


def _distrust(cell: Cell, done: Sequence[Run], results: Results) -> list[str]:
    """Checks judge what claims robustness. A flawed protocol claims none; a cost, or the checks themselves, neither."""
    if "rows" not in cell.reads:
        return []
    if cell.protocol == CORRECT:
        return [check for run in done for check in results.failed_checks(run, cell.suite)]
    return ["model-changed" for run in done if results.is_outdated(run, cell.suite)]
