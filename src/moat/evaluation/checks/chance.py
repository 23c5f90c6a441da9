"""Limits that allow for chance: a fraction measured on n examples may exceed the true one."""

from statistics import NormalDist

# How rarely an honest model may be accused: once in a thousand times if it is exactly at the limit. The papers' grid
# has thousands of checks, each of which tests several values: at one in a hundred, some runs would fail by chance.
FALSE_ALARMS = 0.001
# The same in standard deviations, one-sided.
Z = NormalDist().inv_cdf(1 - FALSE_ALARMS)
# On fewer examples, chance would excuse more than five points where half a point is meant.
ENOUGH = 60


def upper_limit(n: int, fraction: float) -> float:
    """The largest fraction of n examples that is compatible with a true ``fraction``, by the exact binomial test.

    A larger one has a probability below :data:`FALSE_ALARMS` if the true fraction is ``fraction``. For 0.005: 4 of 100,
    13 of 1,000, 73 of 10,000.
    """
    from scipy.stats import binom  # Here, because it takes more than a second.

    return float(binom.isf(FALSE_ALARMS, n, fraction)) / n


def lower_limit(n: int, fraction: float) -> float:
    """The smallest nonzero fraction of n examples that is compatible with a true ``fraction``, by the same test."""
    from scipy.stats import binom

    return max(1.0, float(binom.ppf(FALSE_ALARMS, n, fraction))) / n


def difference_limit(differing: int, n: int, difference: float) -> float:
    """The largest difference of two accuracies on the same n examples compatible with a true ``difference``.

    Args:
        differing: the number of examples that exactly one of the two got right, the variance of their difference.
    """
    return difference + Z * differing**0.5 / n


def accuracy_spread(first: float, n: int, second: float, m: int) -> float:
    """How far the difference of two accuracies, on n and m different images, may stray from the true one."""
    pooled = (first * n + second * m) / (n + m)
    return Z * (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5


def rank_spread(n: int, m: int) -> float:
    """How far the Mann-Whitney estimate of P(X > Y), from n values of X and m of Y, may stray from 1/2."""
    return Z * ((n + m + 1) / (12 * n * m)) ** 0.5
