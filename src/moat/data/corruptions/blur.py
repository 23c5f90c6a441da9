"""Gaussian, defocus and zoom blur, which are linear and the same for all images, and glass blur."""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import to_bytes, zoom_matrix

# The published disk is drawn on a grid of at least 17 x 17 pixels.
_DISK_REACH = 8


def gaussian_blur(images: np.ndarray, deviation: float, draws: Draws) -> np.ndarray:
    """Gaussian filter; the image is padded with its edge pixels."""
    from scipy.ndimage import gaussian_filter

    # In [0, 1], as in the published generator: the rounding decides the level of uniform areas.
    blurred = gaussian_filter(images / 255.0, (0, deviation, deviation, 0), mode="nearest")
    return (np.clip(blurred, 0, 1) * 255).astype(np.uint8)


def defocus_blur(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Correlation with a smoothed disk; the image is padded by reflection, edge pixels not repeated."""
    from scipy.ndimage import correlate1d

    pixels = images.astype(np.float64)
    blurred = sum(
        correlate1d(correlate1d(pixels, down, axis=1, mode="mirror"), right, axis=2, mode="mirror")
        for down, right in _disk_terms(*parameters)
    )
    return to_bytes(blurred)


def zoom_blur(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Mean of the image and its enlargements, with factors from 1."""
    matrix = _zoom_operator(images.shape[1], *parameters)
    count, size, _, channels = images.shape
    pixels = images.reshape(count, size * size, channels).transpose(1, 0, 2).reshape(size * size, -1)
    blurred = matrix @ pixels.astype(np.float32)
    blurred = blurred.reshape(size, size, count, channels).transpose(2, 0, 1, 3)
    return to_bytes(np.ascontiguousarray(blurred))


def glass_blur(images: np.ndarray, parameters: tuple[float, int, int], draws: Draws) -> np.ndarray:
    """Blur, copy pixels from nearby, blur again.

    The published loop intends to swap two pixels but, because both are views of one array, copies one over the other.
    """
    deviation, reach, passes = parameters
    count, size = images.shape[:2]
    # Four bytes per pixel, so that a pixel moves as one number.
    pixels = np.zeros((count, size, size, 4), np.uint8)
    pixels[..., :3] = gaussian_blur(images, deviation, draws)
    flat = pixels.view(np.uint32).reshape(-1)
    offsets = np.arange(count)[:, None] * (size * size)
    for _ in range(passes):
        flat = flat.take(_sources(size, reach, draws) + offsets)
    moved = flat.view(np.uint8).reshape(pixels.shape)[..., :3]
    return gaussian_blur(moved, deviation, draws)


def _sources(size: int, reach: int, draws: Draws) -> np.ndarray:
    """The source of each pixel's new value, int64 (N, size * size).

    The published loop visits the pixels backwards from the end of the last row. A pixel that copies an already visited
    one gets the value that one received; such chains are resolved by pointer doubling.
    """
    rows = np.arange(reach + 1, size - reach + 1)
    inner = (rows[:, None] * size + rows).ravel()
    move = draws.randint(2 * reach, (2, len(inner))) - reach
    sources = np.broadcast_to(np.arange(size * size), (len(move), size * size)).copy()
    target = inner + move[:, 0] * size + move[:, 1]
    if reach == 1:
        # Moves are up and to the left only, so there are no chains.
        sources[:, inner] = target
        return sources
    visited = np.zeros(size * size, dtype=bool)
    visited[inner] = True
    follow = sources.copy()
    earlier = (target > inner) & visited[target]
    follow[:, inner] = np.where(earlier, target, inner)
    sources[:, inner] = target
    while True:
        further = np.take_along_axis(follow, follow, axis=1)
        if np.array_equal(further, follow):
            return np.take_along_axis(sources, follow, axis=1)
        follow = further


@functools.lru_cache(maxsize=32)
def _disk_terms(radius: float, smoothing: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The disk as a sum of separable filters: vertical and horizontal weights of odd length."""
    kernel = _disk(radius, smoothing).astype(np.float64)
    columns, strengths, rows = np.linalg.svd(kernel)
    used = strengths > 1e-9 * strengths[0]
    terms = zip(strengths[used], columns.T[used], rows[used], strict=True)
    return [(strength * _symmetrize(column), _symmetrize(row)) for strength, column, row in terms]


def _symmetrize(weights: np.ndarray) -> np.ndarray:
    """Remove the rounding of the decomposition: the disk is symmetric, and scipy's symmetric filters are faster."""
    return (weights + weights[::-1]) / 2


def _disk(radius: float, smoothing: float) -> np.ndarray:
    """The smoothed disk, float32, with an odd number of rows and columns."""
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
    # Cut off the zeros around a small disk.
    edge = np.flatnonzero(disk.any(axis=0))[0]
    return disk[edge : len(disk) - edge, edge : len(disk) - edge]


@functools.lru_cache(maxsize=16)
def _zoom_operator(size: int, stop: float, step: float):
    """The blur as a sparse float32 matrix (size * size, size * size) over the pixels."""
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
