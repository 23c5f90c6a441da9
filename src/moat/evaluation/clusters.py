"""Mean accuracy over several settings of the same examples, with an interval that counts each example once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moat.base.errors import DataError


@dataclass(frozen=True)
class MeanAccuracy:
    """A mean over settings and examples.

    Attributes:
        mean: fraction correct, every setting weighing the same.
        n: examples, each under every setting.
        effective: as how many independent examples they count, at least n. The answers under several settings of
            one image go together; were they the same, this would be n, and were they independent, n * settings.
    """

    mean: float
    n: int
    effective: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval for ``effective`` examples, as fractions."""
        from scipy.stats import norm

        z, n = norm.ppf((1 + confidence) / 2), self.effective
        centre = (self.mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.mean * (1 - self.mean) / n + z * z / (4 * n * n))
        low, high = float(centre - half), float(centre + half)
        return max(0.0, min(self.mean, low)), min(1.0, max(self.mean, high))


def mean_accuracy(frame: pd.DataFrame, settings: Sequence[str]) -> MeanAccuracy:
    """Mean accuracy over ``settings``, clustered by example.

    The variance of the mean is that of the examples' own means over n (a cluster is an example); ``effective`` is the
    number of independent examples with the same variance, within n and n * settings.

    Args:
        frame: rows with the columns setting, index, correct.

    Raises:
        DataError: no settings, a setting without rows, an example twice, or settings that hold different examples.
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
    return from_shares(by_example.mean().to_numpy(), len(present))


def from_shares(shares: np.ndarray, settings: int) -> MeanAccuracy:
    """The same, of the share of ``settings`` under which each example is right (N,)."""
    mean, n = float(shares.mean()), len(shares)
    variance = float(shares.var(ddof=1)) / n if n > 1 else 0.0
    effective = mean * (1 - mean) / variance if variance > 0 else n
    return MeanAccuracy(mean, n, min(max(effective, n), n * settings))
