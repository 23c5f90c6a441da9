"""The status of everything in a grid (done, missing or stale), from the files on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moat.config import paths
from moat.config.grid import Grid, Run
from moat.config.project import Project
from moat.config.records import Records, result_files


def plan(project: Project, grid: Grid) -> list[dict[str, Any]]:
    """One entry per run, evaluation, check, probe, table and figure: ``kind, path, status, stale`` and its identity.

    ``status``: ``done``, ``missing``, or ``stale`` (done, but it would be made differently today; ``stale`` lists why,
    see :func:`moat.provenance.staleness.describe`). A damaged result is ``missing``. A finished run without its weights
    is ``missing``, with everything made from it, as soon as something needs them.
    """
    records = Records(project.root / "results", grid.scale, project)
    entries = [_job_entry(records, *job) for job in _jobs(grid)] + [*_shown_entries(grid, project.root)]
    again = _to_train_again(grid, project.root, entries)
    for entry in entries:
        if (run := _of_run(entry)) is not None and run.training in again:
            entry.update(status="missing", stale=[])
    return entries


def _to_train_again(grid: Grid, root: Path, entries: list[dict[str, Any]]) -> set[Run]:
    """Finished runs without weights, which git does not keep, that a missing evaluation, check, probe or run needs."""

    def is_bare(run: Run) -> bool:
        return not (root / paths.weights(grid.scale, run)).exists()

    bare = set(filter(is_bare, grid.runs))
    needed = filter(None, (_of_run(entry) for entry in entries if entry["status"] == "missing"))
    again = {run.training for run in needed if is_bare(run)}
    # Runs are in topological order.
    for run in reversed(grid.runs):
        if run in again:
            again |= bare.intersection(grid.initialize_from[run].values())
    return again


def _of_run(entry: dict[str, Any]) -> Run | None:
    """The run of an entry; None for tables and figures."""
    names = ("dataset", "arch", "method", "seed", "weights")
    return Run(*(entry[name] for name in names)) if "seed" in entry else None


def _jobs(grid: Grid) -> Iterator[tuple[str, Run, str, dict[str, Any]]]:
    """The jobs: kind, run, name of suite or probe, and the further keys of the entry."""
    for run in grid.runs:
        yield "run", run, "", {}
    for evaluation in grid.evaluations:
        yield "evaluation", evaluation.run, evaluation.suite, {"suite": evaluation.suite}
    for run in grid.checks:
        yield "check", run, "", {}
    for probe in grid.probes:
        yield "probe", probe.run, probe.name, {"name": probe.name}


def _job_entry(records: Records, kind: str, run: Run, name: str, named: dict[str, Any]) -> dict[str, Any]:
    status, stale = records.status(kind, run, name)
    path = result_files(kind, records.scale, run, name)[0]
    shown = "missing" if status == "damaged" else status
    return {"kind": kind, "status": shown, "path": str(path), "stale": stale, **vars(run), **named}


def _shown_entries(grid: Grid, root: Path) -> Iterator[dict[str, Any]]:
    tables = [("table", item, f"{paths.table(grid.scale, item.study, item.name)}.csv") for item in grid.tables]
    figures = [("figure", item, f"{paths.figure(grid.scale, item.study, item.name)}.png") for item in grid.figures]
    for kind, item, path in tables + figures:
        status = "done" if (root / path).exists() else "missing"
        yield {"kind": kind, "status": status, "path": path, "stale": [], "study": item.study, "name": item.name}
