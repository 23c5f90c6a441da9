"""Hours of training, with all the runs that it starts from (experts, a dense net to prune)."""

from pathlib import Path

from moat.base.errors import DataError
from moat.config import paths
from moat.config.grid_types import Run
from moat.reporting.measures._costs import from_records, other_hardware

READS = ("record",)
UNIT = "h"
reasons = other_hardware


def measure(cell, runs, results):
    return from_records(runs, results, lambda run: _hours(run, results))


def show(value: float) -> str:
    return f"{value:.3g}"


def _hours(run: Run, results) -> float | None:
    """Of one run and everything below it; a run that two of them start from is paid once."""
    seconds: dict[Run, float | None] = {}
    todo = [run]
    while todo:
        if (run := todo.pop()) in seconds:
            continue
        record = results.run(run)
        if record is None:
            raise DataError(f"{paths.run_name(run)}: no run.json, but another run started from it")
        seconds[run] = record.get("wall_seconds")
        todo += [_named(start["path"]) for start in (record.get("initialize_from") or {}).values()]
    return None if None in seconds.values() else sum(seconds.values()) / 3600


def _named(path: str) -> Run:
    """The run of a folder …/<dataset>/<arch>/<method>/seed<k>."""
    dataset, arch, method, seed = Path(path).parts[-4:]
    return Run(dataset, arch, method, int(seed.removeprefix("seed")))
