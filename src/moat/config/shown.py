"""What shows results (tables, figures, the cells of all tables, the page): its files, and what it was made of.

Beside each lies a record of what it was made of, so that whether it still shows what is there does not depend on the
times of files, which a copy or a clone does not keep.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moat.config import paths
from moat.config.grid import Figure, Grid, Run, Table
from moat.config.grid_types import unique
from moat.config.project import Project


@dataclass(frozen=True)
class Shown:
    """A table, a figure, the cells of all tables, or the page.

    Attributes:
        kind: "table", "figure", "cells" or "page".
        studies: those whose declarations decide it.
        files: what is made, its record last.
        results: kind, run and name of suite or probe of every result that it shows.
        needs: what else it is made of, which shows results, too: the file that stands for each.
    """

    kind: str
    study: str
    name: str
    studies: tuple[str, ...]
    files: tuple[Path, ...]
    results: tuple[tuple[str, Run, str], ...]
    needs: tuple[Path, ...] = ()

    @property
    def path(self) -> Path:
        """The file that stands for it."""
        return self.files[0]

    @property
    def record(self) -> Path:
        """Of what it was made of."""
        return self.files[-1]


def select(grid: Grid, selection: str) -> Grid:
    """The part of a grid that is made where only some studies are chosen: without the figures of all cells."""
    if not selection:
        return grid
    return replace(grid, figures=tuple(figure for figure in grid.figures if figure.shows != "cells"))


def selection_of(project: Project, studies: Sequence[str]) -> str:
    """What the names of files that show all studies end in: nothing, or the studies where they are not all.

    All are those of ``config/config.yaml``. So a part never takes the place of the whole.
    """
    return "" if set(studies) == set(project.config()["studies"]) else f"-{'+'.join(sorted(studies))}"


def shown_of(grid: Grid, studies: Sequence[str], selection: str = "") -> list[Shown]:
    """Everything that shows results of a grid, the page last."""
    tables = [of_table(grid.scale, table) for table in grid.tables]
    figures = [of_figure(grid, studies, figure) for figure in grid.figures]
    return [*tables, *figures, of_cells(grid, studies, selection), of_page(grid, studies, selection)]


def of_table(scale: str, table: Table) -> Shown:
    base = paths.table(scale, table.study, table.name)
    files = _beside(base, *paths.TABLE_SUFFIXES, "json")
    return Shown("table", table.study, table.name, (table.study,), files, tuple(results_of(table)))


def of_figure(grid: Grid, studies: Sequence[str], figure: Figure) -> Shown:
    base = paths.figure(grid.scale, figure.study, figure.name)
    files = _beside(base, *paths.FIGURE_SUFFIXES, "json")
    if figure.shows != "cells":
        return Shown("figure", figure.study, figure.name, (figure.study,), files, tuple(results_of(figure)))
    cells, results = (paths.cells(grid.scale),), _results_of_tables(grid)
    return Shown("figure", figure.study, figure.name, tuple(studies), files, results, cells)


def of_cells(grid: Grid, studies: Sequence[str], selection: str) -> Shown:
    """With the claims, ``robustbench.json`` and ``metrics.json``."""
    cells, claims = paths.cells(grid.scale, selection), paths.claims(grid.scale, selection)
    files = (
        cells,
        *_beside(claims, *paths.TABLE_SUFFIXES),
        paths.robustbench(grid.scale, selection),
        paths.metrics(grid.scale, selection),
        cells.with_suffix(".json"),
    )
    tables = tuple(of_table(grid.scale, table).path for table in grid.tables)
    return Shown("cells", "", "cells", tuple(studies), files, _results_of_tables(grid), tables)


def of_page(grid: Grid, studies: Sequence[str], selection: str) -> Shown:
    page = paths.report(grid.scale, selection)
    parts = [of_table(grid.scale, table).path for table in grid.tables]
    parts += [of_figure(grid, studies, figure).path for figure in grid.figures]
    parts.append(paths.cells(grid.scale, selection))
    files = (page, page.with_suffix(".json"))
    return Shown("page", "", "page", tuple(studies), files, tuple(results_of(grid)), tuple(parts))


def _results_of_tables(grid: Grid) -> tuple[tuple[str, Run, str], ...]:
    return unique(each for table in grid.tables for each in results_of(table))


def results_of(shown: Table | Figure | Grid) -> Iterator[tuple[str, Run, str]]:
    """Kind, run and name of all results that a table, a figure or a whole grid rests on."""
    yield from (("run", run, "") for run in shown.runs)
    yield from (("evaluation", evaluation.run, evaluation.suite) for evaluation in shown.evaluations)
    yield from (("check", run, "") for run in shown.checks)
    yield from (("probe", probe.run, probe.name) for probe in getattr(shown, "probes", ()))


def _beside(base: Path, *suffixes: str) -> tuple[Path, ...]:
    return tuple(base.with_name(f"{base.name}.{suffix}") for suffix in suffixes)
