"""What tables and figures are made of: runs, evaluations, cells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, order=True)
class Run:
    """One trained model (at a scale)."""

    dataset: str
    arch: str
    method: str
    seed: int


@dataclass(frozen=True, order=True)
class Evaluation:
    """One suite of attacks on one run."""

    run: Run
    suite: str


@dataclass(frozen=True)
class Cell:
    """One number of a table: where it stands, what is measured, what was published.

    ``settings``: the attack settings of ``suite`` under which a sample must be right to count; with the
    ``aggregate`` "mean", those whose accuracies are averaged.
    ``substitutes``: what the scale put in place of what the paper used, e.g. {"dataset": "cifar10"}
    (the study's name of what was replaced). ``not_run``: why there is no measurement, or None.
    """

    study: str
    table: str
    row: str
    column: str
    dataset: str
    arch: str
    method: str
    suite: str
    settings: tuple[str, ...]
    protocol: str
    seeds: tuple[int, ...]
    published: float | None = None
    published_std: float | None = None
    tolerance: float = 0.0
    substitutes: tuple[tuple[str, str], ...] = ()
    not_run: str | None = None
    aggregate: str = "worst"

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that are measured; none where the cell is not run."""
        if self.not_run is not None:
            return ()
        return tuple(Run(self.dataset, self.arch, self.method, seed) for seed in self.seeds)

    @property
    def metric(self) -> str:
        """``accuracy`` under the cell's settings, e.g. ``accuracy(pgd10)`` or ``mean(fog-1+…+fog-5)``."""
        if self.aggregate == "mean":
            return f"mean({self.settings[0]}+…+{self.settings[-1]})"
        return f"accuracy({'+'.join(self.settings)})"


@dataclass(frozen=True)
class Table:
    study: str
    name: str
    title: str
    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return unique(Evaluation(run, cell.suite) for cell in self.cells for run in cell.runs)

    @property
    def runs(self) -> tuple[Run, ...]:
        return unique(run for cell in self.cells for run in cell.runs)


@dataclass(frozen=True)
class Line:
    """One labelled line, bar group or panel of a figure."""

    label: str
    cell: Cell


@dataclass(frozen=True)
class Figure:
    study: str
    name: str
    kind: str
    title: str
    caption: str
    suite: str
    settings: tuple[str, ...]
    lines: tuple[Line, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return unique(Evaluation(run, line.cell.suite) for line in self.lines for run in line.cell.runs)

    @property
    def runs(self) -> tuple[Run, ...]:
        return unique(run for line in self.lines for run in line.cell.runs)


def unique(items: Iterable) -> tuple:
    """The items in order, each once."""
    return tuple(dict.fromkeys(items))
