"""Evaluations on disk: rows as parquet, their description as JSON, and the cache from which a stopped one resumes."""

import hashlib
import io
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

from moat.attacks.parts.setting import Attack
from moat.attacks.parts.steps import frozen
from moat.base.files import write_bytes, write_json, write_text
from moat.evaluation import corrupted
from moat.evaluation.measurement import MISCLASSIFIED_BY, Measurement
from moat.evaluation.plan import SuitePlan
from moat.evaluation.runner import check_attacks, checked_data
from moat.evaluation.statistics import accuracy, wilson
from moat.evaluation.target import EvaluationTarget
from moat.provenance import environment

log = logging.getLogger(__name__)

_KEY = b"moat"


def write_rows(path: Path, frame: pd.DataFrame) -> None:
    """Write rows as a parquet file (zstd), atomically."""
    write_bytes(path, _to_parquet(frame, {}))


def _to_parquet(frame: pd.DataFrame, metadata: Mapping[str, Any]) -> bytes:
    """The content of a parquet file; ``metadata`` (JSON content) goes into its schema."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    content = io.BytesIO()
    table = table.replace_schema_metadata({_KEY: json.dumps(metadata)})
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    return content.getvalue()


@dataclass(frozen=True)
class Measured:
    """The measured rows of one setting or worst case.

    Attributes:
        seconds: how long measuring them took.
        kept: whether all of them were measured before and read from the cache.
        flags: what the attack noticed about the model: name of the flag -> message.
    """

    name: str
    rows: pd.DataFrame
    seconds: float
    kept: bool
    flags: Mapping[str, str]


class ShardCache:
    """Keeps every measured shard of an evaluation in a file of ``folder``, with a fingerprint of what it was made from.

    Attributes:
        seconds: how long the shards took to measure, now or before.
        kept: whether all of them were measured before.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, identity
        self.seconds, self.kept = 0.0, True

    def __call__(self, shard: str, depends_on: Mapping[str, Any], measure) -> tuple[pd.DataFrame, dict[str, str]]:
        path = self.folder / f"{shard}.parquet"
        made_of = {"identity": self.identity, "part": shard, **depends_on}
        fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        found = _read_shard(path)
        if found is not None and found[1]["fingerprint"] == fingerprint:
            self.seconds += found[1]["seconds"]
            return found[0], found[1]["flags"]
        started = time.perf_counter()
        rows, flags = measure()
        seconds = time.perf_counter() - started
        _write_shard(path, rows, {"fingerprint": fingerprint, "seconds": seconds, "flags": flags})
        self.seconds, self.kept = self.seconds + seconds, False
        return rows, flags


def _write_shard(path: Path, rows: pd.DataFrame, metadata: Mapping[str, Any]) -> None:
    """Rows and metadata, with their sha256 in a file beside: parquet itself misses some corrupted bytes."""
    content = _to_parquet(rows, metadata)
    # First, so that a shard without its sha256 does not occur.
    write_text(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest())
    write_bytes(path, content)


def _read_shard(path: Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """Rows and metadata as :func:`_write_shard` wrote them; None where the file is missing or damaged."""
    digest = path.with_suffix(".sha256")
    if not path.exists() or not digest.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest().encode() != digest.read_bytes():
        log.warning("%s is damaged; measured again", path)
        return None
    table = pq.read_table(pa.BufferReader(content))
    return table.to_pandas(), json.loads(table.schema.metadata[_KEY])


def evaluate_by_setting(
    model,
    x,
    y,
    settings: Mapping[str, Attack],
    *,
    batch_size: int,
    folder: Path,
    identity: Mapping[str, Any],
    indices: Sequence[int] | None = None,
    seed: int = 0,
    worst_case: Mapping[str, Mapping[str, Attack]] | None = None,
) -> Iterator[Measured]:
    """Evaluate setting by setting (see :func:`moat.evaluation.evaluate`), caching every shard once it is measured.

    A shard is a setting, one stage of it (one attack of AutoAttack, one view of an adaptive attack), or about a
    thousand examples of either.

    Args:
        folder: of the cached shards. A shard there is used instead of measuring again if it was made with the same
            ``identity``, setting, seed and examples, whatever the batch size.
        identity: what else the rows depend on: hashes of model, data and sources, as JSON content.
    """
    worst_case = worst_case or {}
    check_attacks(model, settings, worst_case, batch_size)
    x, y, indices = checked_data(model, x, y, indices)
    measurement = Measurement(model, x, y, indices, batch_size, seed)
    tables: dict[str, pd.DataFrame] = {}
    for name in (*settings, *worst_case):
        measurement.cache = cache = ShardCache(folder, identity)
        with frozen(model):
            if name in settings:
                rows = tables[name] = measurement.setting(name, settings[name])
            else:
                rows = measurement.worst_case(name, worst_case[name], tables)
        yield Measured(name, rows, cache.seconds, cache.kept, measurement.flags.get(name, {}))


def evaluate_suite(
    target: EvaluationTarget, plan: SuitePlan, *, folder: Path, sources: Mapping[str, str]
) -> Iterator[Measured]:
    """Measure every setting and worst case of a plan, caching shards in ``folder``.

    Args:
        sources: hashes of the code that measures; what other code has measured is measured again.
    """
    return evaluate_by_setting(
        target.model,
        target.x,
        target.y,
        plan.settings,
        batch_size=target.batch_size,
        folder=folder,
        identity={"model": target.run["model_sha256"], "data": target.data_sha256, "sources": sources},
        indices=target.indices,
        worst_case=plan.worst_cases,
    )


def write_evaluation(
    path: Path, target: EvaluationTarget, plan: SuitePlan, measured: Sequence[Measured], made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the rows to ``path`` (.parquet) and their description to the .json beside it; return the description.

    Args:
        made_by: ``recipe_digest`` and ``sources``, by which a stale evaluation is recognised later.
    """
    frame = pd.concat([each.rows for each in measured], ignore_index=True)
    seconds = {each.name: each.seconds for each in measured}
    total = sum(seconds.values())
    write_rows(path, frame)
    content = {
        "suite": plan.suite,
        "settings": plan.record,
        "not_applicable": plan.not_applicable,
        "worst_case": describe_worst_cases(frame, plan),
        "run": target.run,
        "n": len(target.x),
        "accuracy": summarize(frame, list(seconds)),
        **corrupted.summary(frame, plan.settings),
        "flags": {each.name: dict(each.flags) for each in measured if each.flags},
        "seconds": round(total, 3),
        "seconds_per_setting": {name: round(value, 3) for name, value in seconds.items()},
        "images_per_second": round(len(frame) / total, 1),
        "batch_size": target.batch_size,
        **environment.environment(),
        **made_by,
        "data": target.data,
    }
    write_json(path.with_suffix(".json"), content)
    return content


def summarize(frame: pd.DataFrame, settings: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per setting: correct, n, accuracy and its Wilson interval (low, high) as fractions, counted from the rows."""
    summary = {}
    for setting in settings:
        correct, n = accuracy(frame, [setting])
        low, high = wilson(correct, n)
        summary[setting] = {"correct": correct, "n": n, "accuracy": correct / n, "low": low, "high": high}
    return summary


def describe_worst_cases(frame: pd.DataFrame, plan: SuitePlan) -> dict[str, dict[str, Any]]:
    """Per worst case: its settings, and how many examples each was the first to break."""
    described = {}
    for name, members in plan.worst_cases.items():
        counts = frame.loc[frame["setting"] == name, MISCLASSIFIED_BY].value_counts()
        counted = {member: int(counts.get(member, 0)) for member in members}
        described[name] = {"of": list(members), MISCLASSIFIED_BY: counted}
    return described
