"""Intervals of measured numbers, within one seed and over several, in the printed unit.

For one seed the interval of an accuracy is Wilson's 95 % interval on the examples. For k seeds the measured value is
the mean over the seeds; every seed sees the same examples, so these are counted once: the half widths are Wilson's for
the mean accuracy on n examples and Student's t interval of the mean between seeds (k - 1 degrees of freedom), added
in quadrature on each side and cut to what is possible.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t

from moat.base.errors import DataError
from moat.evaluation.statistics import MeanAccuracy, wilson

CONFIDENCE = 0.95
NORMAL_QUANTILE = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
Interval = tuple[float, float]


def summarise(counts: Sequence[tuple[int, int]], *, where: str) -> dict[str, Any]:
    """measured, measured_std, ci_low, ci_high, n of the (correct, n) of one or several seeds, in points.

    Raises:
        DataError: the seeds were evaluated on different numbers of examples; names ``where``.
    """
    n = same_number([n for _, n in counts], where=where)
    rates = [correct / n for correct, n in counts]
    mean = math.fsum(rates) / len(rates)
    return over_seeds(rates, wilson(round(mean * n), n, confidence=CONFIDENCE), n=n)


def summarise_means(means: Sequence[MeanAccuracy], *, where: str) -> dict[str, Any]:
    """:func:`summarise` for means over settings, clustered by example.

    Raises:
        DataError: the seeds were evaluated on different numbers of examples; names ``where``.
    """
    n, rates = same_number([each.n for each in means], where=where), [each.mean for each in means]
    # The seeds see the same examples: together they know no more than the most informative of them.
    joint = MeanAccuracy(math.fsum(rates) / len(rates), n, max(each.effective for each in means))
    return over_seeds(rates, joint.interval(CONFIDENCE), n=n)


def paired_difference(both: int, first: int, second: int, n: int) -> tuple[float, Interval]:
    """First accuracy minus second on the same n examples, and its interval, as fractions.

    ``both``, ``first``, ``second``: the number of examples that are correct under both, the first, the second. Interval
    of Agresti and Min, Simple improved confidence intervals for comparing matched proportions, 2005: Wald's, with one
    half added to each of the four counts.
    """
    only_first, only_second = first - both + 0.5, second - both + 0.5
    total = n + 2
    centre = (only_first - only_second) / total
    variance = only_first + only_second - (only_first - only_second) ** 2 / total
    half = NORMAL_QUANTILE * math.sqrt(variance) / total
    return (first - second) / n, (centre - half, centre + half)


def over_seeds(
    values: Sequence[float], within: Interval, *, n: int | None, limits: Interval = (0.0, 1.0), unit: float = 100.0
) -> dict[str, Any]:
    """measured, measured_std, ci_low, ci_high, n of one value per seed.

    Args:
        within: the interval of the mean for what every seed shares, e.g. the examples; (mean, mean) if nothing.
        limits: what is possible.
        unit: what 1 is printed as, 100 for fractions in points.
    """
    mean = math.fsum(values) / len(values)
    spread, margin = None, 0.0
    if len(values) > 1:
        # The half width of Student's t interval of the mean.
        spread = statistics.stdev(values)
        margin = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    low, high = within
    # Nobody compares more than four decimals.
    return {
        "measured": round(unit * mean, 4),
        "measured_std": None if spread is None else round(unit * spread, 4),
        "ci_low": round(unit * max(limits[0], mean - math.hypot(max(0.0, mean - low), margin)), 4),
        "ci_high": round(unit * min(limits[1], mean + math.hypot(max(0.0, high - mean), margin)), 4),
        "n": n,
    }


def same_number(sizes: Sequence[int], *, where: str) -> int:
    """The number of examples of all seeds.

    Raises:
        DataError: they differ; names ``where``.
    """
    if len(set(sizes)) > 1:
        raise DataError(f"{where}: the seeds were evaluated on {sorted(set(sizes))} examples; evaluate all on the same")
    return sizes[0]
