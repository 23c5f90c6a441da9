"""What of a grid is done, missing or stale, by looking at the files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moat import sources
from moat.config import paths
from moat.config.grid import Grid


def plan(grid: Grid, root: Path = Path(".")) -> list[dict[str, Any]]:
    """One entry per run, evaluation, gate, probe, table and figure: ``kind, path, status, stale`` and what names it.

    ``status``: ``done``, ``missing``, or ``stale`` (done, but by sources that have changed since; ``stale`` lists
    the parts of the package that differ). Whether a recipe has changed is Snakemake's to say (``snakemake -n``).
    """
    return [_entry(root, **job) for job in _jobs(grid)]


def _jobs(grid: Grid) -> Iterator[dict[str, Any]]:
    scale = grid.scale
    for run in grid.runs:
        path = paths.run_dir(scale, run) / "run.json"
        yield {"kind": "run", "path": path, "record": path, **vars(run)}
    for evaluation in grid.evaluations:
        path = paths.evaluation(scale, evaluation.run, evaluation.suite)
        named = {**vars(evaluation.run), "suite": evaluation.suite}
        yield {"kind": "evaluation", "path": path, "record": path.with_suffix(".json"), **named}
    for run in grid.gates:
        path = paths.gates(scale, run)
        yield {"kind": "gate", "path": path, "record": path, **vars(run)}
    for probe in grid.probes:
        path = paths.probe(scale, probe.run, probe.name)
        yield {
            "kind": "probe",
            "path": path,
            "record": path.with_suffix(".json"),
            **vars(probe.run),
            "name": probe.name,
        }
    for table in grid.tables:
        path = Path(f"{paths.table(scale, table.study, table.name)}.csv")
        yield {"kind": "table", "path": path, "record": None, "study": table.study, "name": table.name}
    for figure in grid.figures:
        path = Path(f"{paths.figure(scale, figure.study, figure.name)}.png")
        yield {"kind": "figure", "path": path, "record": None, "study": figure.study, "name": figure.name}


def _entry(root: Path, *, kind: str, path: Path, record: Path | None, **named: Any) -> dict[str, Any]:
    done = (root / path).exists()
    changed = sources.stale_file(root / record) if done and record else []
    status = "stale" if changed else "done" if done else "missing"
    return {"kind": kind, "status": status, "path": str(path), "stale": changed, **named}
