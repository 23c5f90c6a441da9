"""Evaluations on disk: rows as parquet, and their description as JSON."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moat.attacks.parts.setting import Attack
from moat.attacks.parts.steps import frozen
from moat.base.files import write_bytes, write_json
from moat.evaluation import corrupted
from moat.evaluation.doubts import find_doubts
from moat.evaluation.journal import Journal
from moat.evaluation.measurement import MISCLASSIFIED_BY, Measurement
from moat.evaluation.plan import SuitePlan
from moat.evaluation.runner import check_attacks, checked_data
from moat.evaluation.statistics import accuracy, wilson
from moat.evaluation.target import EvaluationTarget
from moat.machine.usage import Usage
from moat.models.guard import guarded
from moat.provenance import environment


def write_rows(path: Path, frame: pd.DataFrame) -> None:
    """Write rows as a parquet file (zstd), atomically."""
    content = io.BytesIO()
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    write_bytes(path, content.getvalue())


@dataclass(frozen=True)
class Measured:
    """The measured rows of one setting or worst case.

    Attributes:
        seconds: how long measuring them took, now or before.
        measured_before: whether all of them were, and read from the journal.
        earlier_cpu_seconds: CPU time of those that were.
        flags: what the attack noticed about the model: name of the flag -> message.
    """

    name: str
    rows: pd.DataFrame
    seconds: float
    measured_before: bool
    earlier_cpu_seconds: float
    flags: Mapping[str, str]


class _ShardCache:
    """Has the shards of one setting or worst case measured, or takes them from the journal.

    Attributes:
        seconds: how long the shards took to measure, now or before.
        measured_before: whether all of them were; earlier_cpu_seconds: CPU time of those that were.
    """

    def __init__(self, journal: Journal, identity: Mapping[str, Any]):
        self.journal, self.identity = journal, identity
        self.seconds = self.earlier_cpu_seconds = 0.0
        self.measured_before = True

    def __call__(self, shard: str, depends_on: Mapping[str, Any], measure) -> tuple[pd.DataFrame, dict[str, str]]:
        entry, before = self.journal.shard({"identity": self.identity, "part": shard, **depends_on}, measure)
        self.seconds += entry.seconds
        if before:
            self.earlier_cpu_seconds += entry.cpu_seconds
        self.measured_before = self.measured_before and before
        return entry.rows, entry.flags


def evaluate_by_setting(
    model,
    x,
    y,
    settings: Mapping[str, Attack],
    *,
    batch_size: int,
    journal: Path,
    identity: Mapping[str, Any],
    indices: Sequence[int] | None = None,
    seed: int = 0,
    worst_case: Mapping[str, Mapping[str, Attack]] | None = None,
) -> Iterator[Measured]:
    """Evaluate setting by setting (see :func:`moat.evaluation.evaluate`), noting every shard once it is measured.

    A shard is a setting, one stage of it (one attack of AutoAttack, one view of an adaptive attack), or about a
    thousand examples of either.

    Args:
        journal: the file of what was measured so far. A shard there is used instead of measuring again if it was made
            with the same ``identity``, setting, seed and examples, whatever the batch size.
        identity: what else the rows depend on: hashes of model, data and sources, as JSON content.
    """
    model, worst_case = guarded(model), worst_case or {}
    check_attacks(model, settings, worst_case, batch_size)
    x, y, indices = checked_data(model, x, y, indices)
    measurement = Measurement(model, x, y, indices, batch_size, seed)
    tables: dict[str, pd.DataFrame] = {}
    with Journal(journal) as opened:
        for name in (*settings, *worst_case):
            measurement.cache = cache = _ShardCache(opened, identity)
            with frozen(model):
                if name in settings:
                    rows = tables[name] = measurement.setting(name, settings[name])
                else:
                    rows = measurement.worst_case(name, worst_case[name], tables)
            flags = measurement.flags.get(name, {})
            yield Measured(name, rows, cache.seconds, cache.measured_before, cache.earlier_cpu_seconds, flags)
        opened.tidy()


def evaluate_suite(
    target: EvaluationTarget, plan: SuitePlan, *, journal: Path, sources: Mapping[str, str]
) -> Iterator[Measured]:
    """Measure every setting and worst case of a plan, noting in ``journal`` what is done.

    Args:
        sources: hashes of the code that measures; what other code has measured is measured again.
    """
    model = [target.run[key] for key in ("model", "model_sha256", "code_sha256") if key in target.run]
    return evaluate_by_setting(
        target.model,
        target.x,
        target.y,
        plan.settings,
        batch_size=target.batch_size,
        journal=journal,
        identity={"model": model, "data": target.data_sha256, "sources": sources},
        indices=target.indices,
        worst_case=plan.worst_cases,
    )


def write_evaluation(
    path: Path,
    target: EvaluationTarget,
    plan: SuitePlan,
    measured: Sequence[Measured],
    made_by: Mapping[str, Any],
    usage: Usage,
) -> dict[str, Any]:
    """Write the rows to ``path`` (.parquet) and their description to the .json beside it; return the description.

    Args:
        made_by: ``recipe_digest`` and ``sources``, by which a stale evaluation is recognised later.
        usage: begun with the job; what it says goes into the description.
    """
    frame = pd.concat([each.rows for each in measured], ignore_index=True)
    seconds = {each.name: each.seconds for each in measured}
    total = sum(seconds.values())
    warnings = find_doubts(target, plan, frame)
    write_rows(path, frame)
    content = {
        "suite": plan.suite,
        "settings": plan.record,
        "not_applicable": plan.not_applicable,
        "worst_case": describe_worst_cases(frame, plan),
        "run": target.run,
        "n": len(target.x),
        "accuracy": {each.name: summarize(each.rows, [each.name])[each.name] for each in measured},
        **corrupted.summary(frame, plan.settings),
        "warnings": warnings,
        "flags": {each.name: dict(each.flags) for each in measured if each.flags},
        "seconds": round(total, 3),
        "seconds_per_setting": {name: round(value, 3) for name, value in seconds.items()},
        "images_per_second": round(len(frame) / total, 1),
        **usage.record(),
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
