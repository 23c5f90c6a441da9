"""What of a grid is done, missing or stale, by looking at the files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moat.config import paths
from moat.config.grid import Grid, Run
from moat.provenance import staleness


def plan(grid: Grid, root: Path = Path(".")) -> list[dict[str, Any]]:
    """One entry per run, evaluation, check, probe, table and figure: ``kind, path, status, stale`` and what names it.

    ``status``: ``done``, ``missing``, or ``stale`` (done, but by sources that have changed since; ``stale`` lists
    the parts of the package that differ). Whether a recipe has changed is Snakemake's to say (``snakemake -n``).
    A run whose weights are not here is ``missing``, with all that it was asked for, once something needs them.
    """
    entries = [_entry(root, **job) for job in _jobs(grid)]
    again = _to_train_again(grid, root, entries)
    for entry in entries:
        if _of_run(entry) in again:
            entry.update(status="missing", stale=[])
    return entries


def _to_train_again(grid: Grid, root: Path, entries: list[dict[str, Any]]) -> set[Run]:
    """Finished runs without weights (they are in no git) that a missing evaluation, check, probe or run starts from."""
    weights = {run: root / paths.run_dir(grid.scale, run) / "model.safetensors" for run in grid.runs}
    bare = {run for run, path in weights.items() if not path.exists()}
    again = {_of_run(entry) for entry in entries if entry["status"] == "missing"} & bare
    # Each run stands behind those that it needs.
    for run in reversed(grid.runs):
        if run in again:
            again |= bare.intersection(grid.initialize_from[run].values())
    return again


def _of_run(entry: dict[str, Any]) -> Run | None:
    """Of which run the entry is; None for tables and figures."""
    names = ("dataset", "arch", "method", "seed")
    return Run(*(entry[name] for name in names)) if "seed" in entry else None


def _jobs(grid: Grid) -> Iterator[dict[str, Any]]:
    scale = grid.scale
    for run in grid.runs:
        path = paths.run_dir(scale, run) / "run.json"
        yield {"kind": "run", "path": path, "record": path, **vars(run)}
    for evaluation in grid.evaluations:
        path = paths.evaluation(scale, evaluation.run, evaluation.suite)
        named = {**vars(evaluation.run), "suite": evaluation.suite}
        yield {"kind": "evaluation", "path": path, "record": path.with_suffix(".json"), **named}
    for run in grid.checks:
        path = paths.checks(scale, run)
        yield {"kind": "check", "path": path, "record": path, **vars(run)}
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
    changed = staleness.stale_file(root / record) if done and record else []
    status = "stale" if changed else "done" if done else "missing"
    return {"kind": kind, "status": status, "path": str(path), "stale": changed, **named}
