"""Accuracies and their intervals, from the rows of an evaluation."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import pandas as pd

from moat.base.errors import DataError

Verdict = Literal["reproduced", "above", "below", "unverified"]


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as fractions in [0,1].

    Raises:
        ValueError: not 0 <= correct <= n with n from 1, or a confidence outside (0, 1).
    """
    if not (0 <= correct <= n and n >= 1):
        raise ValueError(f"{correct} correct of {n}: allowed are 0 to n correct of n from 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence!r}: allowed is a number between 0 and 1, e.g. 0.95")
    # Not scipy's, whose import takes longer than many an evaluation; it is what the test compares with.
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, share = correct / n, z * z / n
    centre, half = p + share / 2, z * math.sqrt(p * (1 - p) / n + share / (4 * n))
    low, high = (centre - half) / (1 + share), (centre + half) / (1 + share)
    return (low if correct > 0 else 0.0), (high if correct < n else 1.0)


def accuracy(frame: pd.DataFrame, settings: Sequence[str]) -> tuple[int, int]:
    """(correct, n): per-example worst case, an example counts only if it is correct under all ``settings``.

    Args:
        frame: rows with the columns setting, index, correct.

    Raises:
        DataError: no settings, a setting without rows, or settings that hold different examples; names it.
    """
    if not settings:
        raise DataError("no attack setting to take the accuracy over")
    groups = dict(iter(frame[frame["setting"].isin(list(settings))].groupby("setting", observed=True)))
    survives = None
    for setting in settings:
        if setting not in groups:
            known = ", ".join(sorted(map(str, frame["setting"].unique()))) or "none"
            raise DataError(f"no rows for the attack setting {setting!r}; there are {known}")
        correct = groups[setting].set_index("index")["correct"].astype(bool)
        if correct.index.has_duplicates:
            raise DataError(f"the attack setting {setting!r} holds an example twice")
        if survives is not None and (len(correct) != len(survives) or not correct.index.isin(survives.index).all()):
            raise DataError(f"the attack settings {settings[0]!r} and {setting!r} hold different examples")
        survives = correct if survives is None else survives & correct.reindex(survives.index)
    return int(survives.sum()), len(survives)


def verdict(published: float, low: float, high: float, measured: float, tolerance: float) -> Verdict:
    """Whether a measurement equals a published number, by equivalence; all arguments in points.

    ``reproduced``: the whole interval [low, high] lies within published ± tolerance. ``above``, ``below``: the
    whole interval lies beyond that band. ``unverified``: the interval crosses a border of the band, so that too
    few examples were measured to tell.

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
