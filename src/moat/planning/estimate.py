"""Estimate a grid: how long its jobs take, and the items and Snakemake targets among which a budget selects."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.config import paths
from moat.config.grid import Figure, Grid, Table
from moat.config.project import Project
from moat.planning import status
from moat.planning.budget import Item
from moat.planning.jobs import Job, check_path, evaluation_path, jobs_of, probe_path, run_path
from moat.planning.makespan import Schedule, schedule
from moat.planning.rates import Rates


@dataclass(frozen=True)
class Estimate:
    """The jobs of a grid and their estimated durations.

    Attributes:
        entries: of :func:`moat.planning.status.plan`: everything that the grid asks for, with its status.
        jobs: path -> job, including those that are done.
        seconds: path -> estimated seconds.
        sources: path -> the basis of the estimate: "run", "calibration" or "shipped".
        hardware: a name of config/planner.yaml; ``basis``: the source of its shipped rates.
    """

    entries: Sequence[Mapping[str, Any]]
    jobs: Mapping[str, Job]
    seconds: Mapping[str, float]
    sources: Mapping[str, str]
    hardware: str
    basis: str

    def costs(self, statuses: Iterable[str] = ("missing",)) -> dict[str, float]:
        """Path -> hours, of the jobs with these statuses."""
        statuses = set(statuses)
        return {path: self.seconds[path] / 3600 for path, job in self.jobs.items() if job.status in statuses}

    def schedule(self, chosen: Iterable[str], machines: int) -> Schedule:
        """A schedule of the ``chosen`` jobs on equal machines; all others count as done."""
        chosen = {path: self.seconds[path] for path in chosen}
        return schedule(chosen, {path: self.jobs[path].needs for path in chosen}, machines)


def estimate(project: Project, grid: Grid, hardware: str = "auto", studies: Sequence[str] | None = None) -> Estimate:
    """Estimate every job of a grid on a piece of hardware (see :class:`moat.planning.rates.Rates`).

    Args:
        studies: those of the grid; by default those of config/config.yaml.
    """
    rates = Rates(project, hardware)
    entries = status.plan(project, grid, studies)
    jobs = jobs_of(project, grid, entries)
    estimated = {path: rates.seconds(job) for path, job in jobs.items()}
    return Estimate(
        entries=entries,
        jobs=jobs,
        seconds={path: seconds for path, (seconds, _) in estimated.items()},
        sources={path: source for path, (_, source) in estimated.items()},
        hardware=rates.name,
        basis=rates.shipped["basis"],
    )


# -- items that a budget may select --------------------------------------------
def items_of(project: Project, grid: Grid, jobs: Mapping[str, Job]) -> list[Item]:
    """One item (table, cell number) per table cell that needs a run, and one item (figure, None) per figure.

    Raises:
        ConfigError: config/planner.yaml names an unknown study.
    """
    priorities = project.planner()["priority"]
    _check_names(project, priorities)
    closed: dict[str, frozenset[str]] = {}
    for path, job in jobs.items():  # In topological order.
        closed[path] = frozenset([path]).union(*(closed[need] for need in job.needs))
    parts = [
        *((table, number, "table_cell") for table in grid.tables for number in range(len(table.cells))),
        *((figure, None, "figure") for figure in grid.figures),
    ]
    items = []
    for shown, number, kind in parts:
        if targets := targets_of(part_of(grid, shown, number)):
            by_study = priorities["studies"].get(shown.study, priorities[kind])
            priority = priorities["items"].get(f"{shown.study}-{shown.name}", by_study)
            needs = frozenset().union(*(closed[target] for target in targets))
            items.append(Item((shown, number), priority, needs))
    return items


def part_of(grid: Grid, shown: Table | Figure, number: int | None = None) -> Grid:
    """The grid of one cell of a table, or of one figure."""
    if isinstance(shown, Table):
        shown = replace(shown, cells=shown.cells[number : number + 1])
        parts = {"tables": (shown,), "figures": ()}
    else:
        parts = {"tables": (), "figures": (shown,)}
    return replace(grid, **parts, runs=shown.runs, evaluations=shown.evaluations)


def targets_of(part: Grid) -> list[str]:
    """The targets that imply all runs, evaluations, checks and probes of a part of a grid; empty without a run."""
    scale = part.scale
    measured = (*part.checks, *(each.run for each in (*part.evaluations, *part.probes)))
    looked_at = {run.training for run in measured}
    return [
        *(evaluation_path(scale, each) for each in part.evaluations),
        *(check_path(scale, run) for run in part.checks),
        *(probe_path(scale, probe) for probe in part.probes),
        # The other runs follow from their evaluations, checks and probes.
        *(run_path(scale, run) for run in part.runs if run not in looked_at),
    ]


def _check_names(project: Project, priorities: Mapping[str, Any]) -> None:
    known = project.names("studies")
    for key in ("studies", "items"):
        for name in priorities[key]:
            study = name if key == "studies" else next((s for s in known if name.startswith(f"{s}-")), name)
            if study not in known:
                raise ConfigError(f"config/planner.yaml: priority.{key}: " + unknown_name(study, known, what="study"))


# -- the command that makes the selected items ----------------------------------
def snakemake_targets(grid: Grid, selected: Iterable[tuple], done: Iterable[tuple]) -> list[str]:
    """The files to ask Snakemake for: tables and figures if complete, otherwise the cells' evaluations and checks.

    Args:
        selected, done: names of items of :func:`items_of`.
    """
    selected, done = set(selected), set(done)
    targets: dict[str, None] = {}
    for table in grid.tables:
        ours = {(table, number) for number in range(len(table.cells)) if targets_of(part_of(grid, table, number))}
        new = ours & selected
        if new and ours <= selected | done:
            targets[f"{paths.table(grid.scale, table.study, table.name)}.csv"] = None
            continue
        for _, number in sorted(new, key=lambda name: name[1]):
            targets.update(dict.fromkeys(targets_of(part_of(grid, table, number))))
    for figure in grid.figures:
        if (figure, None) in selected:
            targets[f"{paths.figure(grid.scale, figure.study, figure.name)}.png"] = None
    return list(targets)


def snakemake_command(
    scale: str, studies: Iterable[str], targets: Iterable[str], machines: int, *, on_gpus: bool, listed: Path | None
) -> str:
    """One shell command, to be run in the project's root.

    Args:
        listed: a file with one target per line; None: the command itself lists them.
    """
    limit = f"--cores all --resources gpu={machines}" if on_gpus else f"--cores {machines}"
    config = shlex.quote("studies=[" + ",".join(studies) + "]")
    asked = f"$(cat {shlex.quote(str(listed))})" if listed else " ".join(map(shlex.quote, targets))
    return f"snakemake {limit} --config scale={scale} {config} -- {asked}"
