"""Limits that allow for chance: a share found on n examples may exceed the true one."""

# How rarely an honest model may be accused: once in a thousand times at a true share as large as the limit. The grid of
# the papers has thousands of checks, and each takes several looks: at one in a hundred, some runs would fail by chance.
FALSE_ALARMS = 0.001


def most_allowed(n: int, share: float) -> float:
    """The largest share of n examples that is compatible with a true ``share``, by the exact binomial test.

    A larger one is seen with a probability below :data:`FALSE_ALARMS` if the true share is ``share``. For 0.005:
    4 of 100, 13 of 1,000, 73 of 10,000.
    """
    from scipy.stats import binom

    return float(binom.isf(FALSE_ALARMS, n, share)) / n


def least_allowed(n: int, share: float) -> float:
    """The smallest share of n examples, above none, that is compatible with a true ``share``, by the same test."""
    from scipy.stats import binom

    return max(1.0, float(binom.ppf(FALSE_ALARMS, n, share))) / n


def most_apart(differing: int, n: int, points: float) -> float:
    """The largest difference of two accuracies on the same n examples that is compatible with a true ``points``.

    Args:
        differing: examples that exactly one of the two got right; their share is the difference's variance.
    """
    from scipy.stats import norm

    return points + float(norm.isf(FALSE_ALARMS)) * differing**0.5 / n
