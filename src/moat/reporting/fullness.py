"""Nothing that shows numbers is replaced by something that has lost them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from moat.base.errors import ConfigError
from moat.config.grid import Cell, Table
from moat.reporting.results import Results
from moat.reporting.tables import read_cells, records, table_paths


def lost_numbers(tables: Iterable[Table], shown: Iterable[Path], results: Results) -> list[str]:
    """The measurements that CSVs of cells show and whose results are missing now, as text.

    Args:
        shown: CSVs of the cells of these tables; those that do not exist show nothing.
    """
    before = {}
    for path in filter(Path.exists, shown):
        for row in records(read_cells(path)):
            if row["measured"] is not None:
                key = tuple(row[name] for name in ("study", "table", "row", "column", "protocol"))
                before.setdefault(key, set()).update((row["seeds"] or "").split(";"))
    cells = (cell for table in tables for cell in table.measured)
    return [_describe(cell) for cell in cells if _is_lost(cell, before, results)]


def refuse_losses(tables: Iterable[Table], shown: Iterable[Path], results: Results, what: str | Path) -> None:
    """
    Raises:
        ConfigError: ``what`` would be written without measurements that ``shown`` have (see :func:`lost_numbers`).
    """
    if lost := lost_numbers(tables, shown, results):
        raise ConfigError(refusal(what, lost))


def refusal(what: str | Path, lost: Sequence[str]) -> str:
    """Why ``what`` is not written: it would lose these numbers or lines."""
    others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return (
        f"{what} is not written: it shows {lost[0]}{others}, whose results are missing now; make or fetch them first "
        "(`moat plan`, `moat pull`), or give --allow-missing"
    )


def cells_of(tables: Iterable[Table], results: Results) -> list[Path]:
    """The CSVs of the tables."""
    return [table_paths(results, table.study, table.name)["csv"] for table in tables]


def _is_lost(cell: Cell, before: dict[tuple, set[str]], results: Results) -> bool:
    """Whether a run that was measured, and that the cell still asks for, has left nothing to measure."""
    seeds = before.get((cell.study, cell.table, cell.row, cell.column, cell.protocol))
    if not seeds:
        return False
    there = set(results.finished(cell))
    return any(str(run.seed) in seeds and run not in there for run in cell.runs)


def _describe(cell: Cell) -> str:
    protocol = "" if cell.protocol == "correct" else f" ({cell.protocol})"
    return f"{cell.study}-{cell.table}: {cell.row} x {cell.column}{protocol}"
