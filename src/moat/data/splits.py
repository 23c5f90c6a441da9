"""Assign rows to splits and subsets, the same for every run, machine and version of numpy.

numpy guarantees that the streams of ``RandomState`` never change; those of ``Generator`` may.
"""

import numpy as np

#: Independent of the run's seed: every run must hold out the same images.
SEED = 20260101


def stratified_order(labels: np.ndarray, seed: int = SEED) -> np.ndarray:
    """A random order of all rows in which every prefix has the classes in proportion, as far as whole rows allow.

    The k-th of the n rows of a class (in random order) gets the position (k + 1/2) / n; ties are broken at random.
    """
    random = np.random.RandomState(seed)
    shuffled = random.permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((random.permutation(len(labels)), position))


def hold_out(count: int, validation: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows 0..count-1 into (kept, held out), both ascending. A larger ``validation`` gives a superset."""
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[validation:]), np.sort(order[:validation])


def subset(labels: np.ndarray, rows: np.ndarray, limit: int | None, seed: int = SEED) -> np.ndarray:
    """At most ``limit`` of ``rows``, ascending, with classes in proportion. A larger limit gives a superset."""
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(rows[stratified_order(labels[rows], seed)[:limit]])
