"""Motion blur along a straight path of random direction, as ImageMagick's ``-motion-blur`` computes it."""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws

_WIDEST = 45.0


def motion_blur(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Blur along directions uniform in (-45, 45) degrees."""
    return blur_along(images, *parameters, draws.between(-_WIDEST, _WIDEST))


def blur_along(images: np.ndarray, radius: float, deviation: float, angles: np.ndarray) -> np.ndarray:
    """Each image (N, H, W, C) blurred along its own direction, in degrees (N,); rounded to uint8.

    Pixel p becomes the mean of those at p + offset i for i from 0 to 2 * radius, weighted by a normal density of i; the
    image is continued by its outermost pixels. Images of equal offsets are worked on together.
    """
    weights = _weights(radius, deviation)
    paths, members = _paths(len(weights), angles)
    reach = len(weights)
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge").astype(np.float32)
    result = np.empty(images.shape, np.uint8)
    for number, path in enumerate(paths):
        rows = np.flatnonzero(members == number)
        group = padded[rows]
        total = np.full((len(rows), *images.shape[1:]), np.float32(0.5))
        for (down, right), weight in zip(path, weights, strict=True):
            top, left = reach + down, reach + right
            total += weight * group[:, top : top + size, left : left + size]
        result[rows] = total.astype(np.uint8)
    return result


@functools.lru_cache(maxsize=32)
def _weights(radius: float, deviation: float) -> np.ndarray:
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    return (weights / weights.sum()).astype(np.float32)


def _paths(length: int, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different paths, int64 (P, length, 2) of (down, right), and the number of each image's."""
    steps = np.arange(length)
    radians = np.deg2rad(angles)[:, None]
    offsets = np.stack([np.ceil(steps * f(radians) - 0.5) for f in (np.sin, np.cos)], axis=-1).astype(np.int64)
    paths, members = np.unique(offsets.reshape(len(angles), -1), axis=0, return_inverse=True)
    return paths.reshape(-1, length, 2), members.reshape(-1)


CORRUPTIONS = {"motion_blur": motion_blur}
