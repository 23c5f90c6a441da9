"""Attack settings on one model: alone, in stages, and as a worst case, each example attacked no more than needed."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from moat.attacks.parts.flags import collect, flag
from moat.attacks.parts.setting import Attack
from moat.data.seeding import generator
from moat.evaluation import protocols
from moat.evaluation.scoring import device_of, images, project, score
from moat.kernels import attack_copy

log = logging.getLogger(__name__)

# What stages and worst cases add to the columns: the first attack that got the example misclassified, if any did.
MISCLASSIFIED_BY = "misclassified_by"
# Examples that are cached together once they are measured, rounded to whole batches.
SHARD = 1000
# The copy that is attacked must have the model's logits on so many images.
EXAMPLES_COMPARED = 8

Shard = tuple[pd.DataFrame, dict[str, str]]
# Called with the images that were classified, on the model's device, and their rows.
Observer = Callable[[torch.Tensor, pd.DataFrame], None]
# (name of the shard, what its rows depend on, how to measure it) -> rows and flags: measured, or cached before.
Cache = Callable[[str, Mapping[str, Any], Callable[[], Shard]], Shard]


def no_cache(shard: str, depends_on: Mapping[str, Any], measure: Callable[[], Shard]) -> Shard:
    """Measures every time."""
    return measure()


@dataclass
class Measurement:
    """Measures settings on a model and examples; call it inside :func:`moat.attacks.parts.steps.frozen`.

    Attributes:
        indices: each example's number, from which its random numbers come.
        cache: asked for every shard of the work; see :data:`Cache`.
        observe: shown whatever is scored by the correct protocol; see :data:`Observer`.
        flags: what the attacks noticed about the model, by setting.
    """

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    indices: Sequence[int]
    batch_size: int
    seed: int = 0
    cache: Cache = no_cache
    observe: Observer | None = None
    flags: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self):
        # Attacks may use any copy that is faster: what they return is scored on the model itself.
        self.attacked = attack_copy(self.model, images(self.x[:EXAMPLES_COMPARED], device_of(self.model)))

    def setting(self, name: str, attack: Attack) -> pd.DataFrame:
        """The rows of one setting, on all examples up to its limit."""
        return self._on(np.arange(self._reach(attack)), name, attack, name).reset_index(drop=True)

    def worst_case(
        self, name: str, members: Mapping[str, Attack], measured: Mapping[str, pd.DataFrame]
    ) -> pd.DataFrame:
        """One row per example that all members reach: of the first member that got it misclassified, else of the last.

        Members in ``measured`` come first, with their rows as they are; the others attack only what is left. An
        example's random numbers do not depend on the others, so that skipping some changes no verdict; members
        for which they do (those with a batch size of their own) are measured on all examples.
        """
        survivors = np.arange(min(map(self._reach, members.values())))
        found = []
        for member in sorted(members, key=lambda member: member not in measured):
            attack = members[member]
            if member in measured:
                rows = measured[member].loc[survivors]
            elif attack.batch_size is not None:
                rows = self._on(np.arange(self._reach(attack)), member, attack, member).loc[survivors]
            else:
                rows = self._on(survivors, member, attack, f"{name}.{member}")
            survivors = _divide(found, rows, member)
            if not len(survivors):
                break
        return _joined(found, name)

    def _reach(self, attack: Attack) -> int:
        return min(len(self.x), attack.limit or len(self.x))

    def _on(self, positions: np.ndarray, name: str, attack: Attack, part: str) -> pd.DataFrame:
        """Rows of a setting on some examples (at least one), indexed by position."""
        if attack.stages is None:
            return self._in_shards(positions, name, attack, part, f"evaluate {name}")
        clean = Attack(lambda model, x, y: x, eps=0.0, steps=0, takes_generator=False)
        found: list[pd.DataFrame] = []
        left = _divide(found, self._in_shards(positions, name, clean, f"{part}.clean", ""), "clean")
        misclassified = {"clean": len(positions) - len(left)}
        for stage, function in attack.stages(attack.target(self.attacked)).items():
            if not len(left):
                break
            one = replace(attack, function=function, stages=None, takes_generator=True)
            rows = self._in_shards(left, name, one, f"{part}.{stage}", f"evaluate {name} {stage}")
            before, left = len(left), _divide(found, rows, stage)
            misclassified[stage] = before - len(left)
        if attack.review is not None:
            with collect() as flags:
                attack.review(misclassified, len(positions))
            self._add_flags(name, flags)
        return _joined(found, name, reset=False)

    def _in_shards(self, positions: np.ndarray, name: str, attack: Attack, part: str, purpose: str) -> pd.DataFrame:
        """Rows of a single attack, shard by shard, each of them cached."""
        size = attack.batch_size or self.batch_size
        length = max(1, SHARD // size) * size
        tables = []
        for number, start in enumerate(range(0, len(positions), length)):
            shard = positions[start : start + length]
            chosen = [self.indices[position] for position in shard.tolist()]
            depends_on = {
                "setting": dict(attack.parameters),
                "purpose": purpose,
                "seed": self.seed,
                "indices": hashlib.sha256(json.dumps(chosen).encode()).hexdigest(),
            }

            def measure(shard=shard, chosen=chosen) -> Shard:
                with collect() as flags:
                    rows = list(self._in_batches(shard, chosen, name, attack, purpose))
                return pd.concat(rows, ignore_index=True), flags

            rows, flags = self.cache(f"{part}.{number}" if number else part, depends_on, measure)
            self._add_flags(name, flags)
            tables.append(rows.set_axis(shard))
        return pd.concat(tables) if len(tables) > 1 else tables[0]

    def _in_batches(self, positions, indices, name: str, attack: Attack, purpose: str) -> Iterator[pd.DataFrame]:
        size, start = attack.batch_size or self.batch_size, 0
        while start < len(positions):
            batch = slice(start, start + size)
            rows = _within_memory(size, self._batch, positions[batch], indices[batch], name, attack, purpose)
            if rows is None:
                size //= 2
                torch.cuda.empty_cache()
                log.warning("%s: the device's memory is too small; going on with batches of %d", name, size)
                if attack.batch_size is None:
                    self.batch_size = size
                else:
                    flag("batch-size", f"memory sufficed for batches of {size}, not of {attack.batch_size}")
                continue
            yield rows
            start += size

    def _batch(self, positions, indices, name: str, attack: Attack, purpose: str) -> pd.DataFrame:
        device = device_of(self.model)
        chosen = torch.tensor(positions)
        clean, labels = images(self.x[chosen], device), self.y[chosen].to(device, torch.int64)
        draws = [generator(self.seed, 0, purpose, batch=i) for i in indices] if attack.takes_generator else None
        self.model.eval()
        self.attacked.eval()
        if attack.protocol != protocols.CORRECT:
            measured = protocols.get(attack.protocol).measure(self.model, clean, labels, attack, draws)
            return score(*measured, labels, name=name, steps=attack.steps, indices=indices)
        # Clones, so that an attack that works in place cannot move the centre of the ball.
        attacked = attack(self.attacked, clean.clone(), labels.clone(), draws)
        attacked = project(attacked, clean, attack.eps, name)
        rows = score(self.model, clean, attacked, labels, name=name, steps=attack.steps, indices=indices)
        if self.observe is not None:
            self.observe(attacked, rows)
        return rows

    def _add_flags(self, name: str, flags: Mapping[str, str]) -> None:
        if flags:
            self.flags[name] = {**flags, **self.flags.get(name, {})}


def _within_memory(size, function, *arguments):
    """The function's result; None if the device ran out of memory and the batch can still be halved."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError:
        if size == 1:
            raise
    return None


def _divide(found: list[pd.DataFrame], rows: pd.DataFrame, by: str) -> np.ndarray:
    """Put the rows that ``by`` got misclassified into ``found``, and the others at its end; return their positions."""
    if found:
        found.pop()
    correct = rows["correct"].to_numpy(bool)
    for part, name in ((rows[~correct], by), (rows[correct], None)):
        found.append(part.assign(**{MISCLASSIFIED_BY: pd.Series([name] * len(part), index=part.index, dtype="str")}))
    return rows.index[correct].to_numpy()


def _joined(found: Sequence[pd.DataFrame], name: str, *, reset: bool = True) -> pd.DataFrame:
    rows = pd.concat([part for part in found if len(part)]).sort_index().assign(setting=name)
    return rows.reset_index(drop=True) if reset else rows
