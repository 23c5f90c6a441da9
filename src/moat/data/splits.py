"""Which rows go where: the same for every run, machine and version of numpy.

``numpy.random.RandomState`` is used because its streams are frozen for good; those of ``Generator`` may change.
"""

import numpy as np

#: Fixed: the held-out images must be the same for every run, whatever the run's own seed.
SEED = 20260101


def stratified_order(labels: np.ndarray, seed: int = SEED) -> np.ndarray:
    """An order of all rows in which every prefix holds the classes in proportion, as far as whole rows allow.

    Row k (in random order) of the n rows of its class sorts at (k + 1/2) / n; ties are broken at random.
    """
    random = np.random.RandomState(seed)
    shuffled = random.permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((random.permutation(len(labels)), position))


def hold_out(count: int, validation: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Rows 0..count-1 as (kept, held out), each ascending; a larger ``validation`` holds out a superset."""
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[validation:]), np.sort(order[:validation])


def subset(labels: np.ndarray, rows: np.ndarray, limit: int | None, seed: int = SEED) -> np.ndarray:
    """At most ``limit`` of ``rows``, ascending, classes in proportion; a larger limit gives a superset."""
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(rows[stratified_order(labels[rows], seed)[:limit]])
