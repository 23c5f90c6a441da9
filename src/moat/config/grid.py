"""The study grid: tables and figures declared as rows x columns become runs and measurements.

Every cell names a run and a measurement. Runs, evaluations and checks that several cells or studies
share are listed once; what a cell's run starts from (``initialize_from:`` in its recipe) is added.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.config.grid_types import Cell, Evaluation, Figure, Line, Probe, Run, Table, unique
from moat.config.project import Project
from moat.config.recipes import resolve_recipe, simplest
from moat.config.study_grid import Expander

__all__ = [
    "Cell", "Evaluation", "Figure", "Grid", "Line", "Probe", "Run", "Table", "build_grid",
    "declared_tables", "initial_runs",
]  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Everything that a set of studies asks for at one scale."""

    scale: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    runs: tuple[Run, ...]
    evaluations: tuple[Evaluation, ...]
    initialize_from: Mapping[Run, Mapping[str, Run]] = field(hash=False)

    @cached_property
    def checks(self) -> tuple[Run, ...]:
        """The runs that are checked: those whose accuracy a table or figure shows."""
        return unique(run for item in (*self.tables, *self.figures) for run in item.checks)

    @cached_property
    def probes(self) -> tuple[Probe, ...]:
        """What tables and figures need of models themselves."""
        return unique(probe for item in (*self.tables, *self.figures) for probe in item.probes)

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        return unique(run.dataset for run in self.runs)

    def table(self, study: str, name: str) -> Table:
        return _find(self.tables, study, name, "table")

    def figure(self, study: str, name: str) -> Figure:
        return _find(self.figures, study, name, "figure")


def build_grid(project: Project, scale: str, studies: Iterable[str]) -> Grid:
    """Expand ``studies`` at ``scale``.

    Raises:
        ConfigError: a name that nothing declares, or a published number that fits a cell twice; says where.
    """
    for name in project.changed_attacks(scale):
        project.attack(name, where=f"config/scales/{scale}.yaml: attacks", scale=scale)
    tables, figures = [], []
    for study in studies:
        expander = Expander(project, scale, study)
        tables += expander.tables()
        figures += expander.figures()
    shown = [*tables, *figures]
    evaluations = unique(evaluation for item in shown for evaluation in item.evaluations)
    starts = _with_initial_runs(project, scale, unique(run for item in shown for run in item.runs))
    return Grid(scale, tuple(tables), tuple(figures), tuple(starts), evaluations, starts)


def declared_tables(project: Project, scale: str, studies: Iterable[str]) -> tuple[Table, ...]:
    """All tables of ``studies``, with all rows and columns, whatever of them the scale leaves out."""
    return tuple(table for study in studies for table in Expander(project, scale, study, whole=True).tables())


def initial_runs(project: Project, scale: str, run: Run) -> dict[str, Run]:
    """The runs that ``run`` starts from at ``scale``: name in the recipe -> run (same data and net)."""
    return _started_from(run, *_starts(project, scale, run.method))


def _starts(project: Project, scale: str, method: str) -> tuple[bool, list[dict[str, Any]]]:
    """Whether all seeds of a method start from the same runs, and its entries of ``initialize_from``."""
    recipe = resolve_recipe(project, scale, method)
    starts = recipe.get("initialize_from", [])
    reused = bool(recipe.get("reuse_experts"))
    return reused, [{**each, "method": simplest(project, scale, each["method"])} for each in starts]


def _started_from(run: Run, reused: bool, starts: Iterable[Mapping[str, Any]]) -> dict[str, Run]:
    seed = 0 if reused else run.seed
    return {
        # The fixed seed; else the given one, or, where there are several replicas, one of its own for each of them.
        each["name"]: Run(
            run.dataset,
            run.arch,
            each["method"],
            each.get("seed", seed * each.get("replicas", 1) + each.get("replica", 0)),
        )
        for each in starts
    }


def _with_initial_runs(project: Project, scale: str, runs: Iterable[Run]) -> dict[Run, dict[str, Run]]:
    """Every run and all that they start from, each after the runs that it starts from."""
    ordered: dict[Run, dict[str, Run]] = {}
    # Hundreds of runs are of a few dozen methods.
    starts_of = functools.cache(functools.partial(_starts, project, scale))

    def visit(run: Run, path: tuple[Run, ...]) -> None:
        if run in path:
            where = f"config/methods/{run.method}.yaml: initialize_from"
            raise ConfigError(f"{where}: the run would start from itself, through {path[-1].method}")
        if run not in ordered:
            starts = _started_from(run, *starts_of(run.method))
            for other in starts.values():
                visit(other, (*path, run))
            ordered[run] = starts

    for run in runs:
        visit(run, ())
    return ordered


def _find(items, study: str, name: str, kind: str):
    for item in items:
        if (item.study, item.name) == (study, name):
            return item
    known = [f"{item.study}-{item.name}" for item in items]
    raise ConfigError(unknown_name(f"{study}-{name}", known, what=kind))
