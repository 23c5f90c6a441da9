"""Make tables as CSV, Markdown and LaTeX from the evaluations; or, with --cells, one CSV of all, and the claims."""

HELP = "make tables from the evaluations"


def add_arguments(parser) -> None:
    parser.add_argument("--scale", required=True, metavar="X", help="which results: quickstart, mini, paper, …")
    parser.add_argument("--study", metavar="S", help="only the tables of this study")
    parser.add_argument("--table", metavar="T", help="only this table of --study")
    parser.add_argument("--studies", metavar="A,B", help="these studies (default: those of config/config.yaml)")
    parser.add_argument(
        "--cells",
        action="store_true",
        help="put the tables' CSVs together into cells.csv, and write the claims, robustbench.json and metrics.json",
    )
    parser.add_argument("--results", default="results", metavar="DIR", help="folder of the results (default: results)")


def run(arguments) -> None:
    from moat.base.errors import ConfigError
    from moat.config import studies_option
    from moat.config.grid import build_grid
    from moat.config.project import Project
    from moat.reporting.results import Results

    if arguments.table and not arguments.study:
        raise ConfigError("--table needs --study: tables of two studies may share a name")
    if arguments.cells and arguments.study:
        raise ConfigError("--cells takes all tables of the studies; choose them with --studies, not --study")
    project = Project(arguments.project)
    studies = studies_option.studies(project, arguments.studies, arguments.study)
    grid = build_grid(project, arguments.scale, studies)
    tables = (grid.table(arguments.study, arguments.table),) if arguments.table else grid.tables
    results = Results(arguments.results, arguments.scale, project=project)
    content = _join(grid, results) if arguments.cells else _write(tables, results, project.scale(arguments.scale))
    _print_counts(content, len(tables))


def _write(tables, results, scale):
    """Write every table; return their cells."""
    from moat.base.files import write_text
    from moat.reporting import latex, layout, markdown
    from moat.reporting.tables import frame, table_frame, table_paths, to_csv

    records = []
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


def _join(grid, results):
    """Write cells.csv, the claims and metrics.json; return the cells."""
    from moat.base.files import write_json, write_text
    from moat.config import paths
    from moat.reporting import leaderboard, metrics
    from moat.reporting.tables import frame, read_cells, table_paths, to_csv

    parts = [read_cells(table_paths(results, table.study, table.name)["csv"]) for table in grid.tables]
    content = frame([record for part in parts for record in part.to_dict("records")])
    cells, numbers = results.file(paths.cells(results.scale)), results.file(paths.metrics(results.scale))
    write_text(cells, to_csv(content))
    write_json(numbers, metrics.collect(grid.tables, content, results))
    write_json(results.file(paths.robustbench(results.scale)), leaderboard.entries(grid, results))
    _write_claims(grid, content, results)
    print(cells)
    print(numbers)
    return content


def _write_claims(grid, content, results) -> None:
    from moat.base.files import write_text
    from moat.config import paths
    from moat.reporting import claims, claims_tables

    found = claims.evaluate(results.project, grid, content)
    base = results.file(paths.claims(results.scale))
    write_text(base.with_suffix(".csv"), claims_tables.to_csv(found))
    write_text(base.with_suffix(".md"), claims_tables.to_markdown(found))
    write_text(base.with_suffix(".tex"), claims_tables.to_latex(found))
    print(base)


def _print_counts(content, tables: int) -> None:
    from moat.reporting.tables import correct_rows, count_published, count_verdicts

    counts = ", ".join(f"{number} {name}" for name, number in count_verdicts(content).items())
    print(f"{len(correct_rows(content))} cells in {tables} tables: {counts}")
    published = count_published(content)
    outcome = ", ".join(f"{number} {name}" for name, number in published.items())
    print(f"{sum(published.values())} published numbers: {outcome}")
