"""Where a cell's number comes from, and the command that makes just this cell."""

from moat.config import paths
from moat.config.grid_types import Cell, Table, unique
from moat.reporting.results import Results


def command(targets, scale: str) -> str:
    """The snakemake command that makes these files, and only what they need."""
    return f"snakemake --cores all {' '.join(map(str, targets))} --config scale={scale}"


def table_command(table: Table, scale: str) -> str:
    return command([f"{paths.table(scale, table.study, table.name)}.csv"], scale)


def cell_command(cell: Cell, scale: str) -> str | None:
    """What a cell reads: evaluations and checks, or records; None where it reads nothing or is never run."""
    found = unique(path for each in cell.each() for path in (*_rows(each, scale), *_records(each, scale)))
    checked = unique(paths.checks(scale, run) for run in cell.checks)
    return command((*found, *checked), scale) if found or checked else None


def record(cell: Cell, results: Results) -> str | None:
    """The run.json of the first finished run, below ``results/<scale>``."""
    done = results.finished(cell)
    if not done:
        return None
    return str((paths.run_dir(results.scale, done[0]) / "run.json").relative_to(paths.results(results.scale)))


def files(cell: Cell, results: Results) -> list[tuple[str, str]]:
    """(what, path) of everything that the number was read from."""
    done = results.finished(cell)
    found = [("run", str(paths.run_dir(results.scale, run) / "run.json")) for run in done]
    if "rows" in cell.reads:
        found += [("rows", str(paths.evaluation(results.scale, run, cell.suite))) for run in done]
    return found + [("checks", str(paths.checks(results.scale, run))) for run in done if cell.checks]


def address(path: str, scale: str) -> str:
    """Of a file below ``results/<scale>``, as seen from the page, which lies there."""
    return path.removeprefix(f"{paths.results(scale)}/")


def _rows(cell: Cell, scale: str):
    return [paths.evaluation(scale, evaluation.run, evaluation.suite) for evaluation in cell.evaluations]


def _records(cell: Cell, scale: str):
    return [paths.run_dir(scale, run) / "run.json" for run in cell.runs] if "record" in cell.reads else []
