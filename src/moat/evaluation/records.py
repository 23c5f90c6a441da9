"""Rows on disk: parquet files with what made them, and evaluations that an interruption cannot undo."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moat.attacks.suites import Attack
from moat.evaluation.runner import evaluate
from moat.evaluation.statistics import accuracy, wilson
from moat.files import atomic_path

log = logging.getLogger(__name__)

_KEY = b"moat"


def write_rows(path: Path, frame: pd.DataFrame, metadata: Mapping[str, Any] | None = None) -> None:
    """Write rows as a parquet file (zstd), atomically; ``metadata`` (JSON content) goes into its schema."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({_KEY: json.dumps(metadata or {})})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_rows(path: Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """Rows and metadata of a file of :func:`write_rows`; None where there is no such file, or a damaged one."""
    try:
        table = pq.read_table(path)
        return table.to_pandas(), json.loads((table.schema.metadata or {})[_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


@dataclass(frozen=True)
class Measured:
    """The rows of one setting and the seconds that they took; ``kept`` if an earlier process measured them."""

    name: str
    rows: pd.DataFrame
    seconds: float
    kept: bool


def evaluate_by_setting(
    model,
    x,
    y,
    settings: Mapping[str, Attack],
    *,
    batch_size: int,
    parts: Path,
    identity: Mapping[str, Any],
    indices: Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[Measured]:
    """Evaluate setting by setting (see :func:`moat.evaluation.evaluate`), each kept in ``parts`` once it is done.

    Args:
        parts: folder for one file per setting. A file there is used instead of measuring again if it was made
            with the same ``identity``, setting, seed and number of examples, whatever the batch size.
        identity: what the rows depend on beside that: hashes of model, data and sources, as JSON content.
    """
    for name, attack in settings.items():
        path = parts / f"{name}.parquet"
        made_of = {"identity": identity, "setting": dict(attack.parameters), "name": name, "seed": seed, "n": len(x)}
        fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        found = read_rows(path)
        if found is not None and found[1].get("fingerprint") == fingerprint:
            yield Measured(name, found[0], found[1]["seconds"], kept=True)
            continue
        started = time.perf_counter()
        rows = evaluate(model, x, y, {name: attack}, batch_size=batch_size, seed=seed, indices=indices)
        seconds = time.perf_counter() - started
        write_rows(path, rows, {"fingerprint": fingerprint, "seconds": seconds})
        yield Measured(name, rows, seconds, kept=False)


def summarize(frame: pd.DataFrame, settings: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per setting: correct, n, accuracy and its Wilson interval (low, high) as fractions, counted from the rows."""
    summary = {}
    for setting in settings:
        correct, n = accuracy(frame, [setting])
        low, high = wilson(correct, n)
        summary[setting] = {"correct": correct, "n": n, "accuracy": correct / n, "low": low, "high": high}
    return summary
