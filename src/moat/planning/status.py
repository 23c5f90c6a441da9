"""The entries of a plan: everything in a grid with its status (done, missing or stale), from the files on disk."""

from collections.abc import Iterator, Sequence
from typing import Any

from moat.config.grid import Grid, Run
from moat.config.project import Project
from moat.config.records import Records, result_files
from moat.config.shown import selection_of
from moat.config.status import Status, Statuses


def plan(project: Project, grid: Grid, studies: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One entry per run, evaluation, check, probe, table and figure, and for the cells and the page.

    Each has ``kind, path, status, stale, again`` and its identity; see :class:`moat.config.status.Status`: ``stale`` is
    the list of reasons (see :func:`moat.provenance.staleness.describe`), ``again`` whether the workflow makes it.

    Args:
        studies: those of the grid; by default those of config/config.yaml.
    """
    config = project.config()
    studies = config["studies"] if studies is None else list(studies)
    records = Records(project.root / "results", grid.scale, project)
    statuses = Statuses(records, grid, studies, selection_of(project, studies), config["refresh"])
    entries = []
    for kind, run, name, named in _jobs(grid):
        path = result_files(kind, grid.scale, run, name)[0]
        about = {"kind": kind, **_said(statuses.of_result(kind, run, name), path)}
        entries.append({**about, **vars(run), **named})
    for shown in statuses.shown:
        about = {"kind": shown.kind, **_said(statuses.of_shown(shown), shown.path)}
        entries.append({**about, "study": shown.study, "name": shown.name})
    return entries


def _said(found: Status, path) -> dict[str, Any]:
    return {"status": found.status, "path": str(path), "stale": found.reasons, "again": found.again}


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
