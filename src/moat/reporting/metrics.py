"""``metrics.json``: the numbers of one scale, nested, for ``dvc metrics diff`` and other tools."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from moat.config import paths
from moat.config.grid import Cell, Table
from moat.reporting import measures
from moat.reporting.results import Results
from moat.reporting.tables import count_published, count_verdicts, does_not_apply


def collect(tables: Iterable[Table], content: pd.DataFrame, results: Results) -> dict[str, Any]:
    """Counts of verdicts and checks, and the accuracy of every run in percent points.

    Returns:
        ``{"verdicts": {verdict: cells}, "published": {outcome: cells}, "checks": {"passed": runs, "failed": runs},
        "accuracy": {dataset: {arch: {method: {seed<k>: {suite: {setting: points}}}}}}}``. A worst case over several
        settings is named ``worst(a+b+…)``, other numbers as in the column metric of cells.csv. The last epoch's are
        under ``seed<k>-last``.
    """
    cells = [cell for table in tables for cell in table.cells]
    results.expect(cells)
    accuracy: dict[str, Any] = {}
    measured = (cell for cell in cells if "rows" in cell.reads)
    for cell in sorted(measured, key=lambda cell: (cell.dataset, cell.arch, cell.method, cell.suite)):
        for run in results.finished(cell):
            if does_not_apply(cell, run, results) is None:
                inner = accuracy
                for key in (run.dataset, run.arch, run.method, paths.run_name(run).rpartition("/")[2], cell.suite):
                    inner = inner.setdefault(key, {})
                inner[_name(cell)] = measures.get(cell.measure).compute(cell, [run], results)["measured"]
    checks = [results.checks(run) for run in dict.fromkeys(run for cell in cells for run in cell.runs)]
    checked = [bool(check["passed"]) for check in checks if check is not None]
    return {
        "verdicts": count_verdicts(content),
        "published": count_published(content),
        "checks": {"passed": sum(checked), "failed": len(checked) - sum(checked)},
        "accuracy": accuracy,
    }


def _name(cell: Cell) -> str:
    if (cell.measure, cell.aggregate) != ("accuracy", "worst"):
        return cell.metric
    return cell.settings[0] if len(cell.settings) == 1 else f"worst({'+'.join(cell.settings)})"
