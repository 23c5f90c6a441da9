"""Where a cell's number comes from, and the command that makes just this cell."""

from collections.abc import Iterable
from pathlib import Path

from moat.config import paths
from moat.config.grid_types import Cell, Table, unique
from moat.reporting.results import Results


def command(targets: Iterable[str | Path], scale: str) -> str:
    """The snakemake command that makes these files, and only what they need."""
    return f"snakemake --cores all {' '.join(map(str, targets))} --config scale={scale}"


def table_command(table: Table, scale: str) -> str:
    return command([f"{paths.table(scale, table.study, table.name)}.csv"], scale)


def cell_command(cell: Cell, scale: str) -> str | None:
    """Makes the evaluations, checks or records that a cell reads; None where it reads nothing or is never run."""
    files: list[Path] = []
    for each in cell.each():
        files += [paths.evaluation(scale, evaluation.run, evaluation.suite) for evaluation in each.evaluations]
        if "record" in each.reads:
            files += [paths.run_dir(scale, run) / "run.json" for run in each.runs]
        files += [paths.probe(scale, probe.run, probe.name) for probe in each.probes]
    files += [paths.checks(scale, run) for run in cell.checks]
    return command(unique(files), scale) if files else None


def record(cell: Cell, results: Results) -> str | None:
    """The run.json of the first finished run, below ``results/<scale>``."""
    done = results.finished(cell)
    return address(str(paths.run_dir(results.scale, done[0]) / "run.json"), results.scale) if done else None


def files(cell: Cell, results: Results) -> list[tuple[str, str]]:
    """(what, path) of every file that the number was read from."""
    done = results.finished(cell)
    found = [("run", str(paths.run_dir(results.scale, run) / "run.json")) for run in done]
    if "rows" in cell.reads:
        found += [("rows", str(paths.evaluation(results.scale, run, cell.suite))) for run in done]
    if "probe" in cell.reads:
        found += [("probe", str(paths.probe(results.scale, run, cell.probe))) for run in done]
    return found + [("checks", str(paths.checks(results.scale, run))) for run in done if cell.checks]


def address(path: str, scale: str) -> str:
    """A file below ``results/<scale>``, relative to the page, which lies there."""
    return path.removeprefix(f"{paths.results(scale)}/")
