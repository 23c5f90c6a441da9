"""Accuracies, their intervals, and verdicts, from the rows of an evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd

from moat.base.errors import DataError

Verdict = Literal["reproduced", "above", "below", "unverified"]


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as fractions in [0, 1].

    Raises:
        ValueError: not 0 <= correct <= n with n from 1, or a confidence outside (0, 1).
    """
    if not (0 <= correct <= n and n >= 1):
        raise ValueError(f"{correct} correct of {n}: allowed are 0 to n correct of n from 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence!r}: allowed is a number between 0 and 1, e.g. 0.95")
    low, high = _wilson(correct / n, n, confidence)
    return (low if correct > 0 else 0.0), (high if correct < n else 1.0)


def _wilson(p: float, n: float, confidence: float) -> tuple[float, float]:
    # Not scipy's interval, because importing scipy takes longer than many an evaluation.
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    shrinkage = z * z / n
    centre, half = p + shrinkage / 2, z * math.sqrt(p * (1 - p) / n + shrinkage / (4 * n))
    return (centre - half) / (1 + shrinkage), (centre + half) / (1 + shrinkage)


def accuracy(frame: pd.DataFrame, settings: Sequence[str]) -> tuple[int, int]:
    """(correct, n) in the per-example worst case: an example counts as correct if it is so under all ``settings``.

    Args:
        frame: rows with the columns setting, index, correct.

    Raises:
        DataError: no settings, a setting without rows, or settings on different examples; names the setting.
    """
    if not settings:
        raise DataError("no attack setting to take the accuracy over")
    names, index, correct = (frame[column].to_numpy() for column in ("setting", "index", "correct"))
    survives, examples = None, None
    for setting in settings:
        rows = np.flatnonzero(names == setting)
        if not len(rows):
            known = ", ".join(sorted(map(str, frame["setting"].unique()))) or "none"
            raise DataError(f"no rows for the attack setting {setting!r}; there are {known}")
        rows = rows[np.argsort(index[rows], kind="stable")]
        found = index[rows]
        if (found[1:] == found[:-1]).any():
            raise DataError(f"the attack setting {setting!r} holds an example twice")
        if examples is not None and not np.array_equal(found, examples):
            raise DataError(f"the attack settings {settings[0]!r} and {setting!r} hold different examples")
        right = correct[rows].astype(bool)
        survives, examples = right if survives is None else survives & right, found
    return int(survives.sum()), len(survives)


@dataclass(frozen=True)
class MeanAccuracy:
    """A mean accuracy over settings and examples, clustered by example.

    Attributes:
        mean: fraction correct, with equal weight for every setting.
        n: number of examples, each of them under every setting.
        effective: the effective number of independent examples. It is n if the predictions under all settings of an
            image always agree, and n * settings if they are independent.
    """

    mean: float
    n: int
    effective: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval for ``effective`` examples, as fractions."""
        low, high = _wilson(self.mean, self.effective, confidence)
        return max(0.0, min(self.mean, low)), min(1.0, max(self.mean, high))


def mean_accuracy(frame: pd.DataFrame, settings: Sequence[str]) -> MeanAccuracy:
    """Mean accuracy over ``settings``, clustered by example.

    Args:
        frame: rows with the columns setting, index, correct.

    Raises:
        DataError: no settings, a setting without rows, a duplicate example, or settings on different examples.
    """
    if not settings:
        raise DataError("no attack setting to take the mean over")
    rows = frame[frame["setting"].isin(list(settings))]
    present = set(rows["setting"].unique())
    missing = [setting for setting in settings if setting not in present]
    if missing:
        raise DataError(
            f"no rows for the attack setting {missing[0]!r}; there are {', '.join(sorted(present)) or 'none'}"
        )
    if rows.duplicated(["setting", "index"]).any():
        raise DataError("an attack setting holds an example twice")
    by_example = rows.groupby("index")["correct"]
    if (by_example.size() != len(present)).any():
        raise DataError(f"the {len(present)} attack settings to take the mean over hold different examples")
    return clustered_mean(by_example.mean().to_numpy(), len(present))


def clustered_mean(fractions: np.ndarray, settings: int) -> MeanAccuracy:
    """The mean accuracy, given the fraction of ``settings`` under which each example is correct (N,).

    Its variance is that of the fractions divided by N, because an example is a cluster. ``effective`` is the number of
    independent examples with the same variance, clipped to between N and N * settings.
    """
    mean, n = float(fractions.mean()), len(fractions)
    variance = float(fractions.var(ddof=1)) / n if n > 1 else 0.0
    effective = mean * (1 - mean) / variance if variance > 0 else n
    return MeanAccuracy(mean, n, min(max(effective, n), n * settings))


def verdict(published: float, low: float, high: float, measured: float, tolerance: float) -> Verdict:
    """Compare a measurement with a published number by an equivalence test; all arguments in percentage points.

    ``reproduced``: the whole interval [low, high] lies within published ± tolerance. ``above``, ``below``: the whole
    interval lies outside that band. ``unverified``: the interval straddles an edge of the band, so that there are too
    few examples to tell.

    Raises:
        ValueError: not low <= measured <= high, or a negative tolerance.
    """
    if not low <= measured <= high or tolerance < 0:
        raise ValueError(
            f"measured {measured!r} in [{low!r}, {high!r}] with tolerance {tolerance!r}: "
            "allowed is low <= measured <= high, tolerance from 0"
        )
    bottom, top = published - tolerance, published + tolerance
    if bottom <= low and high <= top:
        return "reproduced"
    if low > top:
        return "above"
    if high < bottom:
        return "below"
    return "unverified"
