"""What the measures of a run's cost share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moat.config.grid_types import Cell, Run
from moat.reporting.intervals import over_seeds

ANYTHING = (0.0, float("inf"))


def from_records(runs: Sequence[Run], results, read: Callable[[Run], float | None]) -> dict[str, Any] | None:
    """A number of each run's record, over the seeds; None where a record lacks it."""
    values = [read(run) for run in runs]
    if not values or None in values:
        return None
    mean = sum(values) / len(values)
    return over_seeds(values, (mean, mean), n=None, limits=ANYTHING, unit=1.0)


def field(name: str, results) -> Callable[[Run], float | None]:
    """Reads one key of run.json."""
    return lambda run: (results.run(run) or {}).get(name)


def other_hardware(cell: Cell, runs: Sequence[Run], results) -> list[str]:
    """A cost is compared with a published one only where the run was on the same hardware."""
    same = all(is_on(results.run(run) or {}, cell.hardware) for run in runs)
    return [] if cell.hardware is None or same else ["other-hardware"]


def is_on(record: Mapping[str, Any], hardware: str | None) -> bool:
    """Whether a run was made on ``hardware``, a part of its device's name, e.g. A100."""
    device = str(record.get("device") or "")
    gpus = [] if device == "cpu" else (record.get("hardware") or {}).get("gpus") or []
    return hardware is not None and any(hardware.lower() in str(name).lower() for name in [device, *gpus])
