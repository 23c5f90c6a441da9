"""One row per cell of a table: what was published, what was measured, and how far they agree.

A cell whose published number an alternative protocol may explain is followed by one more row for each such protocol.
:mod:`moat.reporting.intervals` says how the intervals are computed.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from moat.base.errors import DataError
from moat.config import paths
from moat.config.cell_spec import CORRECT
from moat.config.grid import Cell, Run, Table
from moat.evaluation.statistics import verdict
from moat.reporting import measures
from moat.reporting.results import Results

_IDENTITY = (
    *("study", "table", "row", "column", "dataset", "arch", "method", "metric", "protocol"),
    *("published", "published_std"),
)
COLUMNS = [
    *_IDENTITY,
    *("measured", "measured_std", "ci_low", "ci_high", "n", "seeds", "verdict", "checks_failed"),
]
VERDICTS = ("reproduced", "explained", "above", "below", "unverified", "not-run")
# How the reason begins why there can be no number.
DOES_NOT_APPLY = "does not apply: "
# Entries of checks_failed that do not change the verdict.
REMARKS = ("stale",)
# Entries, or their beginnings, that keep a number from being compared with a published one, and say nothing against it.
_INCOMPARABLE = ("budget", "seeds-missing", "unofficial-data", "stand-in ", "other-hardware")
# What became of a published number, and the verdicts that say so.
OUTCOMES = {
    "reproduced": ("reproduced",),
    "explained": ("explained",),
    "contradicted": ("above", "below"),
    "unverified": ("unverified",),
    "not run": ("not-run",),
}


def measure_cell(cell: Cell, results: Results, scale: Mapping[str, Any]) -> dict[str, Any]:
    """The row of ``cells.csv`` for one cell under its own protocol; None where a column has nothing to say.

    Args:
        results: where the evaluations are; reads less if :meth:`Results.expect` announced the cell.
        scale: the scale's YAML, which says whether its numbers may be compared with published ones.

    The verdict is ``not-run`` without a measurement; ``unverified`` where a check failed or seeds are missing and,
    where there is a published number, where budget, data or hardware are not the paper's; otherwise that of
    :func:`moat.evaluation.statistics.verdict`, and empty where nothing was published. A stale number is marked in
    ``checks_failed`` and keeps its verdict, which was true of the sources that made it.

    Raises:
        DataError: an evaluation that is damaged, or seeds evaluated on different numbers of examples.
    """
    row = {name: getattr(cell, name) for name in _IDENTITY} | {"verdict": None}
    if not_run_reason(cell, results) is not None:
        return {**row, "verdict": "not-run"}
    done = results.finished(cell)
    row |= measures.get(cell.measure).compute(cell, done, results)
    reasons = _reasons(cell, done, results, scale)
    said = [*reasons, *(["stale"] if results.stale(cell) else [])]
    row |= {"seeds": ";".join(str(run.seed) for run in done) or None, "checks_failed": ";".join(said) or None}
    if reasons:
        row["verdict"] = "unverified"
    elif isinstance(cell.published, str):
        # A word that differs is among the reasons.
        row["verdict"] = "reproduced"
    elif cell.published is not None:
        row["verdict"] = verdict(cell.published, row["ci_low"], row["ci_high"], row["measured"], cell.tolerance)
    return row


def rows_of(cell: Cell, results: Results, scale: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row of a cell, and one for each alternative protocol.

    The cell is ``explained`` where the correct protocol clearly gives another number than the published one and an
    alternative protocol gives the published one.
    """
    row, *alternatives = (measure_cell(each, results, scale) for each in cell.each())
    if row["verdict"] in ("above", "below") and any(other["verdict"] == "reproduced" for other in alternatives):
        row["verdict"] = "explained"
    return [row, *alternatives]


def not_run_reason(cell: Cell, results: Results) -> str | None:
    """Why a cell has no measurement, or None where it has one."""
    if cell.not_run is not None:
        return cell.not_run
    done = results.finished(cell)
    if cell.reads and not done:
        missing = {"rows": "not evaluated yet", "probe": "not probed yet"}
        return next((why for what, why in missing.items() if what in cell.reads), "not trained yet")
    if "rows" in cell.reads:
        return does_not_apply(cell, done[0], results)
    known = measures.get(cell.measure).compute(cell, done, results) is not None
    return None if known else f"the record of the run does not say ({cell.measure})"


def does_not_apply(cell: Cell, run: Run, results: Results) -> str | None:
    """Why an evaluation has no number for a cell, or None.

    Either it makes no sense for the run's model (an attack on the router of a net without one), or the suite has been
    given a setting since: without it, a worst case would come out too high.
    """
    left_out, measured = results.not_applicable(run, cell.suite), results.measured_settings(run, cell.suite)
    for _, settings in measures.get(cell.measure).wanted(cell):
        if all(setting in left_out for setting in settings):
            return f"{DOES_NOT_APPLY}{left_out[settings[0]]}"
        # Which setting it is would make a note of its own for every column.
        if measured and not {*measured, *left_out}.issuperset(settings):
            return f"evaluated before the suite {cell.suite} had all settings that this needs: evaluate again"
    return None


def reasons_of(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The entries of a row's ``checks_failed``: reasons not to trust its number, and :data:`REMARKS`."""
    said = row.get("checks_failed")
    names = said.split(";") if isinstance(said, str) else []
    reasons = [name for name in names if name and name not in REMARKS]
    return reasons, [name for name in names if name in REMARKS]


def distrusted(row: Mapping[str, Any]) -> list[str]:
    """The reasons not to trust a row's number itself, compared or not: failed checks, weights that changed since."""
    return [reason for reason in reasons_of(row)[0] if not reason.startswith(_INCOMPARABLE)]


def stand_ins(cell: Cell) -> list[str]:
    """What the scale substitutes for what the study names, as in ``stand-in dataset cifar10->digits``."""
    return [f"stand-in {kind} {original}->{getattr(cell, kind)}" for kind, original in cell.substitutes]


def table_frame(table: Table, results: Results, scale: Mapping[str, Any]) -> pd.DataFrame:
    """All cells of a table with :data:`COLUMNS`, row by row, each followed by its alternative protocols."""
    results.expect(table.cells)
    return frame(row for cell in table.cells for row in rows_of(cell, results, scale))


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of cells as a DataFrame with :data:`COLUMNS`; ``n`` is an integer that may be missing."""
    return pd.DataFrame(list(rows), columns=COLUMNS).astype({"n": "Int64"})


def records(content: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of :func:`frame` as dicts, None where a value is missing."""
    return content.astype(object).where(content.notna(), None).to_dict("records")


def read_cells(path: Path) -> pd.DataFrame:
    """A table's long CSV.

    Raises:
        DataError: the file is missing or has other columns; names it.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; `moat tabulate` makes it")
    content = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(content.columns) != COLUMNS:
        raise DataError(f"{path}: the columns are not those of a table of cells: {', '.join(content.columns)}")
    for name in ("published", "published_std", "measured", "measured_std", "ci_low", "ci_high", "n"):
        content[name] = content[name].map(_number_or_word)
    return frame(records(content))


def _number_or_word(text: str) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


def to_csv(content: pd.DataFrame) -> str:
    """The text of ``cells.csv`` and its like: empty where there is no value, ``\\n`` line ends."""
    return content.to_csv(index=False, lineterminator="\n")


def correct_rows(content: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: without those of the alternative protocols, which follow their cell."""
    return content.drop_duplicates(["study", "table", "row", "column"], keep="first")


def count_verdicts(content: pd.DataFrame) -> dict[str, int]:
    """verdict -> number of cells, in the order of :data:`VERDICTS`; ``measured`` where nothing was published."""
    counts = correct_rows(content)["verdict"].fillna("").replace("", "measured").value_counts()
    return {name: int(counts[name]) for name in (*VERDICTS, "measured") if name in counts}


def count_published(content: pd.DataFrame) -> dict[str, int]:
    """What became of the published numbers: outcome -> cells, by :data:`OUTCOMES`.

    Words are not counted, nor are settings: our code and recipes took them from the papers.
    """
    cells = correct_rows(content)
    counted = [is_counted(row["published"], row["metric"]) for row in records(cells)]
    counts = cells[counted]["verdict"].value_counts()
    return {name: sum(int(counts.get(verdict, 0)) for verdict in kinds) for name, kinds in OUTCOMES.items()}


def is_counted(published: float | str | None, metric: str | None) -> bool:
    """Whether something published is a number, and no setting that our code and recipes took from the paper."""
    try:
        float("" if published is None else published)
    except ValueError:
        return False
    return not re.match(r"\w+_property\(", metric or "")


def table_paths(results: Results, study: str, name: str) -> dict[str, Path]:
    """The files of a table: suffix -> path."""
    base = results.file(paths.table(results.scale, study, name))
    return {suffix: base.with_name(f"{base.name}.{suffix}") for suffix in paths.TABLE_SUFFIXES}


def _reasons(cell: Cell, done: list[Run], results: Results, scale: Mapping[str, Any]) -> list[str]:
    """Why the number must not be taken at face value; empty where it may."""
    reasons: list[str] = []
    # Checks are about claims of robustness. A flawed protocol claims none, and neither does a cost.
    if "rows" in cell.reads and cell.protocol == CORRECT:
        reasons += [check for run in done for check in results.failed_checks(run, cell.suite)]
    elif "rows" in cell.reads:
        reasons += ["model-changed" for run in done if results.is_outdated(run, cell.suite)]
    if "probe" in cell.reads:
        reasons += ["model-changed" for run in done if results.is_probe_outdated(run, cell.probe)]
    if len(done) < len(cell.runs):
        reasons.append("seeds-missing")
    if cell.published is not None and cell.reads:
        reasons += [] if scale["comparable"] else ["budget"]
        reasons += stand_ins(cell)
        if any((results.run(run) or {}).get("data", {}).get("official") is False for run in done):
            reasons.append("unofficial-data")
    if cell.published is not None:
        reasons += measures.get(cell.measure).incomparable(cell, done, results)
    return list(dict.fromkeys(reasons))
