"""The record of a finished run, run.json, and the names of its weights. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.base.errors import DataError
from moat.base.files import read_json
from moat.config import paths

REQUIRED = (
    "dataset", "arch", "method", "class", "mixture", "seed", "scale", "model", "data", "num_classes", "model_sha256",
    "last_sha256",
)  # fmt: skip
# The weights of the best epoch by validation accuracy, and of the last epoch: files, and keys of their hashes.
WEIGHTS, SHA256 = paths.WEIGHTS, paths.SHA256


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read the run.json of a run's folder.

    Raises:
        DataError: it is missing (says how to make it), or not the record of a finished run.
    """
    path = Path(folder) / "run.json"
    if not path.exists():
        raise DataError(f"{path}: no such file; `moat train … --out {folder}` makes it")
    run = read_json(path)
    missing = [key for key in REQUIRED if not isinstance(run, dict) or key not in run]
    if missing:
        raise DataError(f"{path}: is no record of a finished run: {missing[0]!r} is missing")
    return run


def identity(run: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that identify a run in the records of its evaluations, checks and probes."""
    return {key: run[key] for key in ("dataset", "arch", "method", "class", "mixture", "seed", "scale")}
