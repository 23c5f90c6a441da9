"""Motion blur along a straight path of random direction, computed as by ImageMagick's ``-motion-blur``."""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws

_WIDEST = 45.0
# Pixels of smaller weight are left out: they change a level by at most a thousandth.
_LIGHTEST = 4e-6


def motion_blur(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Blur along directions drawn uniformly from (-45, 45) degrees."""
    return blur_along(images, *parameters, draws.between(-_WIDEST, _WIDEST))


def blur_along(images: np.ndarray, radius: float, deviation: float, angles: np.ndarray) -> np.ndarray:
    """Blur each image (N, H, W, C) along its own direction, in degrees (N,); rounded to uint8.

    A pixel p becomes the mean of the pixels p + offset i, i = 0 to 2 * radius, weighted by a normal density of i; the
    image is padded with its edge pixels. Images with the same offsets are processed together.
    """
    weights = _weights(radius, deviation)
    paths, members = _paths(len(weights), angles)
    low, high = -paths.min(axis=(0, 1), initial=0), paths.max(axis=(0, 1), initial=0)
    padded = np.pad(images, ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)), mode="edge")
    result = np.empty(images.shape, np.uint8)
    order = np.argsort(members, kind="stable")
    ends = np.cumsum(np.bincount(members, minlength=len(paths)))
    size = images.shape[1]
    for path, rows in zip(paths + low, np.split(order, ends[:-1]), strict=True):
        pixels = padded[rows].astype(np.float32)
        # Truncation to uint8 then rounds.
        total = np.full((len(rows), size, size, images.shape[3]), np.float32(0.5))
        part = np.empty_like(total)
        for (top, left), weight in zip(path, weights, strict=True):
            total += np.multiply(pixels[:, top : top + size, left : left + size], weight, out=part)
        result[rows] = total
    return result


@functools.lru_cache(maxsize=32)
def _weights(radius: float, deviation: float) -> np.ndarray:
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    weights /= weights.sum()
    return weights[weights > _LIGHTEST].astype(np.float32)


def _paths(length: int, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct paths, int64 (P, length, 2) of (down, right), and the number of each image's path (N,)."""
    steps = np.arange(length)
    radians = np.deg2rad(angles)[:, None]
    offsets = np.stack([np.ceil(steps * f(radians) - 0.5) for f in (np.sin, np.cos)], axis=-1).astype(np.int64)
    paths, members = np.unique(offsets.reshape(len(angles), -1), axis=0, return_inverse=True)
    return paths.reshape(-1, length, 2), members.reshape(-1)


CORRUPTIONS = {"motion_blur": motion_blur}
