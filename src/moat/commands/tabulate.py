"""Make tables as CSV, Markdown and LaTeX from the evaluations; or, with --cells, one CSV of all, and the claims."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

import pandas as pd

from moat.base.errors import ConfigError
from moat.base.files import write_json, write_text
from moat.commands.options import ShownRequest, add_shown_arguments, shown_request
from moat.config import paths
from moat.config.grid import Table
from moat.config.shown import of_cells, of_table
from moat.reporting import claims, claims_tables, fullness, latex, layout, leaderboard, markdown, metrics
from moat.reporting.results import Results
from moat.reporting.tables import (
    correct_rows,
    count_published,
    count_verdicts,
    frame,
    read_cells,
    table_frame,
    table_paths,
    to_csv,
)


@dataclass(frozen=True)
class Request:
    """Some tables; or ``cells``: what is made of all of them together."""

    shown: ShownRequest
    tables: tuple[Table, ...]
    cells: bool


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--study", metavar="S", help="only the tables of this study")
    parser.add_argument("--table", metavar="T", help="only this table of --study")
    parser.add_argument(
        "--cells",
        action="store_true",
        help="put the tables' CSVs together into cells.csv, and write the claims, robustbench.json and metrics.json",
    )
    add_shown_arguments(parser)


def request(arguments: Namespace) -> Request:
    if arguments.table and not arguments.study:
        raise ConfigError("--table needs --study: tables of two studies may share a name")
    if arguments.cells and arguments.study:
        raise ConfigError("--cells takes all tables of the studies; choose them with --studies, not --study")
    shown = shown_request(arguments, arguments.study)
    grid = shown.grid
    tables = (grid.table(arguments.study, arguments.table),) if arguments.table else grid.tables
    return Request(shown, tables, arguments.cells)


def run(request: Request) -> None:
    shown = request.shown
    results = Results(shown.results, shown.grid.scale, project=shown.project)
    if not shown.allow_missing:
        _refuse_losses(request, results)
    statuses = shown.statuses(results)
    content = _join(shown, results) if request.cells else _write(request.tables, results)
    made = [of_cells(shown.grid, shown.studies, shown.selection)] if request.cells else []
    for each in made or [of_table(shown.grid.scale, table) for table in request.tables]:
        statuses.write_record(each)
    counts = ", ".join(f"{number} {name}" for name, number in count_verdicts(content).items())
    print(f"{len(correct_rows(content))} cells in {len(request.tables)} tables: {counts}")
    published = count_published(content)
    outcome = ", ".join(f"{number} {name}" for name, number in published.items())
    print(f"{sum(published.values())} published numbers: {outcome}")


def _refuse_losses(request: Request, results: Results) -> None:
    cells = results.file(paths.cells(results.scale, request.shown.selection))
    shown = fullness.cells_of(request.tables, results)
    if request.cells:
        fullness.refuse_losses(request.tables, [cells, *shown], results, cells)
        return
    for table, path in zip(request.tables, shown, strict=True):
        fullness.refuse_losses([table], [path], results, path)


def _write(tables: tuple[Table, ...], results: Results) -> pd.DataFrame:
    """Write every table; return their cells."""
    scale, records = results.project.scale(results.scale), []
    for table in tables:
        results.expect(table.cells)
    for table in tables:
        content = table_frame(table, results, scale)
        arranged = layout.arrange(table, content, results)
        files = table_paths(results, table.study, table.name)
        write_text(files["csv"], to_csv(content))
        write_text(files["md"], markdown.render(arranged))
        write_text(files["tex"], latex.render(arranged))
        print(files["csv"].with_suffix(""))
        records += content.to_dict("records")
    return frame(records)


def _join(shown: ShownRequest, results: Results) -> pd.DataFrame:
    """Write cells.csv, the claims, robustbench.json and metrics.json; return the cells."""
    grid, place = shown.grid, (results.scale, shown.selection)
    parts = [read_cells(table_paths(results, table.study, table.name)["csv"]) for table in grid.tables]
    content = frame([record for part in parts for record in part.to_dict("records")])
    cells, numbers = results.file(paths.cells(*place)), results.file(paths.metrics(*place))
    write_text(cells, to_csv(content))
    write_json(numbers, metrics.collect(grid.tables, content, results))
    write_json(results.file(paths.robustbench(*place)), leaderboard.entries(grid, results))
    found = claims.evaluate(results.project, grid, content, shown.studies)
    base = results.file(paths.claims(*place))
    write_text(base.with_suffix(".csv"), claims_tables.to_csv(found))
    write_text(base.with_suffix(".md"), claims_tables.to_markdown(found))
    write_text(base.with_suffix(".tex"), claims_tables.to_latex(found))
    for path in (base, cells, numbers):
        print(path)
    return content
