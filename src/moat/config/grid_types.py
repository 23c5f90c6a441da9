"""What tables and figures consist of: runs, evaluations, probes, cells."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from moat.config.cell_spec import CORRECT

# What a cell's metric adds to the name of its measure.
_LAST_EPOCH, _MEAN = "last_epoch_", "mean_"


@dataclass(frozen=True, order=True)
class Run:
    """One trained model (at a scale).

    Attributes:
        weights: those of the best epoch on held-out images ("best"), or those of the last one ("last"): one training
            leaves both.
    """

    dataset: str
    arch: str
    method: str
    seed: int
    weights: str = "best"

    @property
    def training(self) -> "Run":
        """The run itself, whichever of its weights are meant."""
        return self if self.weights == "best" else replace(self, weights="best")


@dataclass(frozen=True, order=True)
class Evaluation:
    """One suite of attacks on one run."""

    run: Run
    suite: str


@dataclass(frozen=True, order=True)
class Probe:
    """Arrays that figures need from a model: a probe of ``config/probes.yaml`` on one run."""

    run: Run
    name: str


@dataclass(frozen=True)
class Cell:
    """One number of a table: where it stands, what is measured, what was published.

    Attributes:
        measure: how the number is computed from the results, a name of :mod:`moat.reporting.measures`.
        reads: what the measure looks at: ``rows`` (an evaluation), ``record`` (run.json), ``checks``, ``probe``.
        settings: the attack settings of ``suite``. With ``aggregate`` worst, an example must be classified correctly
            under all of them to count; with mean, the number is the mean over them.
        patterns: the settings as the study writes them, e.g. ``fog-?``.
        code_property: which property the measure shows, where it knows several. probe: which one it reads.
        protocol: ``correct``, or the flawed one that ``settings`` replicate.
        published: a number, or the word of a table of words; ``published_line``: its line in
            config/published/<study>.csv, the first after the header being 2.
        substitutes: (kind, name) of what the paper used and the scale, or the study itself, replaced, e.g.
            ("dataset", "cifar10").
        weights: of the runs: "best" or "last" epoch.
        hardware: what a published cost was measured on, e.g. A100.
        not_run: why there is no measurement, or None.
        axes: (axis, label) as the study writes them, e.g. ("method", "DRAMoE").
        alternatives: the same cell under flawed protocols that may have given the published number.
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
    published: float | str | None = None
    published_std: float | None = None
    tolerance: float = 0.0
    substitutes: tuple[tuple[str, str], ...] = ()
    not_run: str | None = None
    measure: str = "accuracy"
    reads: tuple[str, ...] = ("rows",)
    aggregate: str = "worst"
    patterns: tuple[str, ...] = ()
    code_property: str = ""
    probe: str = ""
    hardware: str | None = None
    weights: str = "best"
    published_line: int | None = None
    axes: tuple[tuple[str, str], ...] = ()
    alternatives: tuple["Cell", ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that are measured; none where the cell is not run, or is a property of the code."""
        if self.not_run is not None or not self.reads:
            return ()
        return tuple(Run(self.dataset, self.arch, self.method, seed, self.weights) for seed in self.seeds)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return tuple(Evaluation(run, self.suite) for run in self.runs) if "rows" in self.reads else ()

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Of the first seed: what a probe takes is shown of one model."""
        return tuple(Probe(run, self.probe) for run in self.runs[:1]) if "probe" in self.reads else ()

    @property
    def checks(self) -> tuple[Run, ...]:
        """The runs whose checks decide whether the number can be trusted; a cost and a replica's number need none."""
        return self.runs if self.protocol == CORRECT and {"rows", "checks"} & set(self.reads) else ()

    @property
    def metric(self) -> str:
        """What the number is, e.g. ``accuracy(pgd10)``, ``last_epoch_mean_accuracy(fog-?)`` or ``parameters``."""
        name = f"{_MEAN}{self.measure}" if self.aggregate == "mean" else self.measure
        name = f"{_LAST_EPOCH}{name}" if self.weights == "last" else name
        about = self.code_property or self.probe or "+".join(self.patterns or self.settings)
        return f"{name}({about})" if about else name

    def each(self) -> Iterator["Cell"]:
        """The cell, then the same under alternative protocols."""
        yield self
        yield from self.alternatives


def measure_of(metric: str) -> str:
    """The measure of a :attr:`Cell.metric`."""
    return metric.partition("(")[0].removeprefix(_LAST_EPOCH).removeprefix(_MEAN)


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
    def measured(self) -> Iterator[Cell]:
        """All cells, also under alternative protocols."""
        return (each for cell in self.cells for each in cell.each())

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return unique(evaluation for cell in self.measured for evaluation in cell.evaluations)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return unique(run.training for cell in self.measured for run in cell.runs)

    @cached_property
    def checks(self) -> tuple[Run, ...]:
        return unique(run for cell in self.measured for run in cell.checks)

    @cached_property
    def probes(self) -> tuple[Probe, ...]:
        return unique(probe for cell in self.measured for probe in cell.probes)


@dataclass(frozen=True)
class Line:
    """One labelled line, bar, point or panel of a figure.

    ``axes``: (axis, label) as they are shown, with stand-ins named, e.g. ("method", "DRAMoE").
    """

    label: str
    cell: Cell
    axes: tuple[tuple[str, str], ...] = ()


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
    shows: str = "lines"

    @property
    def measured(self) -> Iterator[Cell]:
        """The cells of all lines, also under alternative protocols."""
        return (each for line in self.lines for each in line.cell.each())

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return unique(evaluation for cell in self.measured for evaluation in cell.evaluations)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return unique(run.training for cell in self.measured for run in cell.runs)

    @cached_property
    def checks(self) -> tuple[Run, ...]:
        return unique(run for cell in self.measured for run in cell.checks)

    @cached_property
    def probes(self) -> tuple[Probe, ...]:
        return unique(probe for cell in self.measured for probe in cell.probes)


def unique(items: Iterable) -> tuple:
    """The items in order, each once."""
    return tuple(dict.fromkeys(items))
