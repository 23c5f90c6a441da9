"""The number of a claim, computed from cells with an interval, and its verdict.

The numbers of two cells are treated as independent. Their intervals are combined by MOVER (method of variance estimates
recovery; Newcombe, Interval estimation for the difference between independent proportions, 1998): on each side, the
distances to the limits are added in quadrature.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A value and its interval, low <= value <= high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Band:
    """The stated range [low, high] of a number; one of them may be infinite."""

    low: float
    high: float

    def verdict(self, number: Number) -> str:
        """``reproduced``: the interval lies in the band; ``above``, ``below``: wholly outside; else ``unverified``."""
        if self.low <= number.low and number.high <= self.high:
            return "reproduced"
        if number.low > self.high:
            return "above"
        return "below" if number.high < self.low else "unverified"


def value(of: Sequence[Number], against: Sequence[Number]) -> list[Number]:
    """The numbers themselves."""
    return list(of)


def difference(of: Sequence[Number], against: Sequence[Number]) -> list[Number]:
    """The first minus the second, of each pair."""
    return [_minus(first, second) for first, second in zip(of, against, strict=True)]


def increase(of: Sequence[Number], against: Sequence[Number]) -> list[Number]:
    """By how many percent the first is above the second, of each pair."""
    return [_per_cent(first, second) for first, second in zip(of, against, strict=True)]


def reduction(of: Sequence[Number], against: Sequence[Number]) -> list[Number]:
    """By how many percent the first is below the second, of each pair."""
    return [Number(-each.value, -each.high, -each.low) for each in increase(of, against)]


QUANTITIES: Mapping[str, Callable[[Sequence[Number], Sequence[Number]], list[Number]]] = {
    "value": value,
    "difference": difference,
    "increase": increase,
    "reduction": reduction,
}
# Those that compare cells with others.
COMPARING = ("difference", "increase", "reduction")


def average(numbers: Sequence[Number], band: Band) -> Number:
    """The mean, whatever the band."""
    n = len(numbers)
    mean = math.fsum(number.value for number in numbers) / n
    below = math.hypot(*(number.value - number.low for number in numbers)) / n
    above = math.hypot(*(number.high - number.value for number in numbers)) / n
    return Number(mean, mean - below, mean + above)


def decisive(numbers: Sequence[Number], band: Band) -> Number:
    """The number that decides whether every one lies in the band: one outside it if there is any, the farthest.

    Otherwise one whose interval crosses an edge, otherwise the one that is nearest to an edge.
    """
    rank = {"reproduced": 0, "unverified": 1, "below": 2, "above": 2}

    def excess(number: Number) -> float:
        return max(band.low - number.value, number.value - band.high)

    return max(numbers, key=lambda number: (rank[band.verdict(number)], excess(number)))


# How the numbers of several cells, or of several pairs of cells, become the one that is compared with the claim.
OVER: Mapping[str, Callable[[Sequence[Number], Band], Number]] = {"mean": average, "each": decisive}


def _minus(first: Number, second: Number) -> Number:
    found = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Number(found, found - below, found + above)


def _per_cent(first: Number, second: Number) -> Number:
    """100 (first / second - 1); infinitely uncertain where the second may be zero."""
    if second.low <= 0 <= second.high:
        return Number(0.0 if second.value == 0 else 100 * (first.value / second.value - 1), -math.inf, math.inf)
    ratio = first.value / second.value
    below = math.hypot(first.value - first.low, ratio * (second.high - second.value)) / abs(second.value)
    above = math.hypot(first.high - first.value, ratio * (second.value - second.low)) / abs(second.value)
    return Number(100 * (ratio - 1), 100 * (ratio - below - 1), 100 * (ratio + above - 1))
