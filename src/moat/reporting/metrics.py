"""``metrics.json``: the numbers of one scale, nested, for ``dvc metrics diff`` and other tools."""

from collections.abc import Iterable
from typing import Any

from moat.config.grid import Cell, Run, Table
from moat.reporting.results import Results
from moat.reporting.tables import count_verdicts


def collect(tables: Iterable[Table], content, results: Results) -> dict[str, Any]:
    """Counts of verdicts and gates, and the accuracy of every run in percent points.

    Returns:
        ``{"verdicts": {verdict: cells}, "gates": {"passed": runs, "failed": runs}, "accuracy": {dataset:
        {arch: {method: {seed<k>: {suite: {setting: points}}}}}}}``. A worst case over several
        settings is named ``worst(a+b+…)``, a mean ``mean(a+…+b)``.
    """
    cells = [cell for table in tables for cell in table.cells]
    results.expect(cells)
    accuracy: dict[str, Any] = {}
    for cell in sorted(cells, key=lambda cell: (cell.dataset, cell.arch, cell.method, cell.suite)):
        _add(accuracy, cell, results)
    gates = [results.gates(run) for run in dict.fromkeys(run for cell in cells for run in cell.runs)]
    checked = [bool(gate["passed"]) for gate in gates if gate is not None]
    return {
        "verdicts": count_verdicts(content),
        "gates": {"passed": sum(checked), "failed": len(checked) - sum(checked)},
        "accuracy": accuracy,
    }


def _add(accuracy: dict[str, Any], cell: Cell, results: Results) -> None:
    name = cell.settings[0] if len(cell.settings) == 1 else f"worst({'+'.join(cell.settings)})"
    name = cell.metric if cell.aggregate == "mean" else name
    for run in cell.runs:
        if not results.has_evaluation(run, cell.suite):
            continue
        inner = accuracy
        for key in (run.dataset, run.arch, run.method, f"seed{run.seed}", cell.suite):
            inner = inner.setdefault(key, {})
        inner[name] = round(100 * _rate(cell, run, results), 4)


def _rate(cell: Cell, run: Run, results: Results) -> float:
    if cell.aggregate == "mean":
        return results.mean(run, cell.suite, cell.settings).mean
    correct, n = results.counts(run, cell.suite, cell.settings)
    return correct / n
