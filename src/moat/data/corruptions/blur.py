"""Blurs that treat all images alike, and the glass that moves pixels: Gaussian, defocus, zoom, glass."""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import gaussian_matrix, interleaved, planes, separable, to_bytes, zoom_matrix

# The published disk is drawn on at least 17 x 17 pixels.
_DISK_REACH = 8


def gaussian_blur(images: np.ndarray, deviation: float, draws: Draws) -> np.ndarray:
    """Gaussian filter, the image continued by its outermost pixels."""
    return _blurred(images, _gaussian(images.shape[1], deviation))


def defocus_blur(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Correlation with a smoothed disk, the image continued by its mirror image (outermost pixels not repeated)."""
    pixels = planes(images, np.float64)
    terms = _disk_terms(images.shape[1], *parameters)
    blurred = sum(np.matmul(np.matmul(left, pixels), right) for left, right in terms)
    return to_bytes(interleaved(blurred))


def zoom_blur(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Mean of the image and of its enlargements by factors from 1."""
    matrix = _zoom_operator(images.shape[1], *parameters)
    count, size, _, channels = images.shape
    pixels = images.reshape(count, size * size, channels).transpose(1, 0, 2).reshape(size * size, -1)
    blurred = matrix @ pixels.astype(np.float32)
    blurred = blurred.reshape(size, size, count, channels).transpose(2, 0, 1, 3)
    return to_bytes(np.ascontiguousarray(blurred))


def glass_blur(images: np.ndarray, parameters: tuple[float, int, int], draws: Draws) -> np.ndarray:
    """Blur, pixels copied from nearby, the same blur.

    The published loop means to swap two pixels but, by views of one array, copies one over the other.
    """
    deviation, reach, passes = parameters
    count, size = images.shape[:2]
    matrix = _gaussian(size, deviation)
    pixels = _blurred(images, matrix)
    flat = pixels.reshape(count, size * size, -1)
    for _ in range(passes):
        flat = np.take_along_axis(flat, _sources(size, reach, draws)[..., None], axis=1)
    return _blurred(flat.reshape(images.shape), matrix)


def _blurred(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Both axes through ``matrix``, on a scale from 0 to 1 as published: rounding decides about even areas."""
    return to_bytes(interleaved(separable(planes(images, np.float64) / 255, matrix) * 255))


def _sources(size: int, reach: int, draws: Draws) -> np.ndarray:
    """For each pixel, where its new value comes from: int64 (N, size * size).

    Pixels are gone through from the last row's end backwards. One that copies a pixel already gone through gets what
    that one got; such chains are followed by doubling.
    """
    rows = np.arange(reach + 1, size - reach + 1)
    inner = (rows[:, None] * size + rows).ravel()
    move = draws.below(2 * reach, (2, len(inner))) - reach
    sources = np.broadcast_to(np.arange(size * size), (len(move), size * size)).copy()
    target = inner + move[:, 0] * size + move[:, 1]
    if reach == 1:
        # Moves up and to the left only: no chains.
        sources[:, inner] = target
        return sources
    gone_through = np.zeros(size * size, dtype=bool)
    gone_through[inner] = True
    follow = sources.copy()
    earlier = (target > inner) & gone_through[target]
    follow[:, inner] = np.where(earlier, target, inner)
    sources[:, inner] = target
    while True:
        further = np.take_along_axis(follow, follow, axis=1)
        if np.array_equal(further, follow):
            return np.take_along_axis(sources, follow, axis=1)
        follow = further


@functools.lru_cache(maxsize=32)
def _gaussian(size: int, deviation: float) -> np.ndarray:
    return gaussian_matrix(size, deviation, "nearest", 4.0)


@functools.lru_cache(maxsize=32)
def _disk_terms(size: int, radius: float, smoothing: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The filter as a sum of separable ones: pairs of matrices (left, right), float64 (size, size)."""
    kernel = _disk(radius, smoothing).astype(np.float64)
    columns, strengths, rows = np.linalg.svd(kernel)
    used = strengths > 1e-9 * strengths[0]
    return [
        (strength * _correlation(size, column), _correlation(size, row).T.copy())
        for strength, column, row in zip(strengths[used], columns.T[used], rows[used], strict=True)
    ]


def _disk(radius: float, smoothing: float) -> np.ndarray:
    """The smoothed disk in float32, of odd side."""
    from scipy.ndimage import correlate1d

    reach = _DISK_REACH if radius <= _DISK_REACH else radius
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    taps = 1 if radius <= _DISK_REACH else 2
    weights = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * smoothing**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        disk = correlate1d(disk, weights, axis=axis, mode="mirror")
    return disk


def _correlation(size: int, weights: np.ndarray) -> np.ndarray:
    """Correlation along an axis as a matrix, mirrored at the ends."""
    from scipy.ndimage import correlate1d

    return correlate1d(np.eye(size), weights, axis=0, mode="mirror")


@functools.lru_cache(maxsize=16)
def _zoom_operator(size: int, stop: float, step: float):
    """A sparse matrix (size * size, size * size) of float32 that maps pixels to blurred ones."""
    from scipy import sparse

    factors = np.arange(1, stop, step)
    total = sparse.eye(size * size)
    for factor in factors:
        matrix = sparse.csr_array(zoom_matrix(size, factor))
        total = total + sparse.kron(matrix, matrix)
    return sparse.csr_array(total / (len(factors) + 1)).astype(np.float32)


CORRUPTIONS = {
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "zoom_blur": zoom_blur,
    "gaussian_blur": gaussian_blur,
}
