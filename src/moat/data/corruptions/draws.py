"""Vectorized random numbers for a batch in which every image has its own stream."""

import functools
import math
from collections.abc import Sequence

import numpy as np

# SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): number j of a stream is a hash of its key + j * the golden ratio.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


class Draws:
    """One stream of random numbers per image, which depends only on the image's key.

    Args:
        keys: per image an integer from 0 to 2**64 - 1, such as :func:`moat.data.seeding.derive_seed` returns.
    """

    def __init__(self, keys: Sequence[int]):
        self._keys = np.array(keys, dtype=np.uint64)[:, None]
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._keys)

    def bits(self, count: int) -> np.ndarray:
        """The next ``count`` numbers of each stream: uint64 (N, count)."""
        counter = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64) * _STEP
        self._drawn += count
        value = self._keys + counter
        for shift, factor in _ROUNDS:
            value ^= value >> shift
            value *= factor
        value ^= value >> np.uint64(31)
        return value

    def uint16(self, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform integers from 0 to 65,535: uint16 (N, \\*shape)."""
        count = math.prod(shape)
        found = self.bits(-(-count // 4)).astype("<u8", copy=False).view("<u2")
        return found[:, :count].reshape(len(found), *shape)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform on 65,536 values in (-1, 1): float32 (N, \\*shape)."""
        return self.uint16(shape).astype(np.float32) * np.float32(2 / 65536) - np.float32(65535 / 65536)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal, from its quantiles at (k + 1/2) / 65,536: float32 (N, \\*shape)."""
        return _normal_quantiles()[self.uint16(shape)]

    def between(self, low: float, high: float, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform in [low, high) with 53 random bits: float64 (N, \\*shape)."""
        unit = (self.bits(math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * unit.reshape(len(unit), *shape)

    def randint(self, limit: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform integers from 0 to limit - 1, for a limit up to 65,536: int64 (N, \\*shape).

        The probabilities of two integers differ by at most 1 / 65,536.
        """
        drawn = self.uint16(shape or (1,)).astype(np.int64) * limit >> 16
        return drawn.reshape(len(drawn), *shape)


@functools.cache
def _normal_quantiles() -> np.ndarray:
    from scipy.special import ndtri

    return ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)
