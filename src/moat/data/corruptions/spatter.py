"""Spatter: drops of water, or splashes of mud.

The shading of water follows OpenCV, which the published generator calls: Canny edges (3 x 3 Sobel gradients, L1 norm),
5 x 5 chamfer distance, histogram equalization, filters with rounding.
"""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import gaussian_matrix, separable, to_bytes

# Red, green, blue, 0 to 255.
_WATER = np.array([175, 238, 238], np.float32)
_MUD = np.array([63, 42, 20], np.float32)
_MUD_LEAST = 0.8

_LOW, _HIGH = 50, 150
# The tangent of 22.5 degrees in units of 2**-15.
_TANGENT, _TANGENT_BITS = 13573, 15

_STRAIGHT, _DIAGONAL, _KNIGHT = 1.0, 1.4, 2.1969
_FARTHEST = 20.0
_RELIEF = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def spatter(images: np.ndarray, parameters: tuple, draws: Draws) -> np.ndarray:
    """Lay drops over the image, wherever a smoothed random layer exceeds a threshold."""
    mean, deviation, smoothing, threshold, opacity, liquid = parameters
    size = images.shape[1]
    layer = mean + deviation * draws.normal((size, size)).astype(np.float64)
    layer = separable(layer, _gaussian(size, smoothing))
    layer[layer < threshold] = 0
    if liquid == "mud":
        cover = separable((layer > threshold).astype(np.float32), _gaussian(size, opacity).astype(np.float32))
        cover[cover < _MUD_LEAST] = 0
        cover = cover[..., None]
        return to_bytes(images * (1 - cover) + cover * _MUD)
    water = np.clip(layer * 255, 0, 255).astype(np.uint8)
    shading = water * _shading(water)
    most = shading.max(axis=(1, 2), keepdims=True)
    shading *= np.float32(opacity) / np.maximum(most, 1)
    return to_bytes(images + shading[..., None] * _WATER)


def _shading(water: np.ndarray) -> np.ndarray:
    """The shading of drops lit from one side: float32 (N, H, W), integer levels."""
    distance = np.minimum(_distance(_edges(water)), np.float32(_FARTHEST))
    distance = _equalized(_box(distance, "reflect").astype(np.uint8))
    padded = np.pad(distance.astype(np.int16), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    relief = sum(
        weight * _moved(padded, down - 1, right - 1)
        for down, row in enumerate(_RELIEF)
        for right, weight in enumerate(row)
        if weight
    )
    return np.rint(_box(np.clip(relief, 0, 255).astype(np.float32), "reflect"))


def _moved(padded: np.ndarray, down: int, right: int) -> np.ndarray:
    """Each pixel's neighbour ``down`` and ``right`` of it, of an array padded by one pixel."""
    return padded[:, 1 + down : padded.shape[1] - 1 + down, 1 + right : padded.shape[2] - 1 + right]


def _box(values: np.ndarray, mode: str) -> np.ndarray:
    """The mean of 3 x 3 pixels, float32."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode=mode)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / np.float32(9)


def _edges(levels: np.ndarray) -> np.ndarray:
    """Canny edges: bool (N, H, W)."""
    padded = np.pad(levels.astype(np.int32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    along = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    dx, dy = across[:, :, 2:] - across[:, :, :-2], along[:, 2:] - along[:, :-2]
    strength = np.abs(dx) + np.abs(dy)
    around = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    flat = np.abs(dx) * _TANGENT
    height = np.abs(dy) << _TANGENT_BITS
    horizontal = height < flat
    vertical = ~horizontal & (height > flat + (np.abs(dx) << (_TANGENT_BITS + 1)))
    falling = (dx ^ dy) < 0
    before = np.where(falling, _moved(around, -1, 1), _moved(around, -1, -1))
    after = np.where(falling, _moved(around, 1, -1), _moved(around, 1, 1))
    before = np.where(horizontal, _moved(around, 0, -1), np.where(vertical, _moved(around, -1, 0), before))
    after = np.where(horizontal, _moved(around, 0, 1), np.where(vertical, _moved(around, 1, 0), after))
    # Of equal neighbours the first one is the ridge; along a diagonal neither is.
    ridge = (strength > before) & ((strength > after) | ((horizontal | vertical) & (strength == after)))
    ridge &= strength > _LOW
    return _connected(ridge, ridge & (strength > _HIGH))


def _connected(candidates: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The 8-connected components of ``candidates`` (N, H, W) that contain a seed."""
    from scipy.ndimage import label

    within_an_image = np.zeros((3, 3, 3), bool)
    within_an_image[1] = True
    parts, count = label(candidates, within_an_image)
    kept = np.zeros(count + 1, bool)
    kept[parts[seeds]] = True
    kept[0] = False
    return kept[parts]


def _distance(edges: np.ndarray) -> np.ndarray:
    """Chamfer distance to the nearest edge, float32 (N, H, W); large if an image has no edge."""
    distance = np.where(edges, np.float32(0), np.float32(1e4))
    for rows in (distance, distance[:, ::-1, ::-1]):
        _sweep(rows)
    return distance


def _sweep(distance: np.ndarray) -> None:
    """One pass of the chamfer distance, in place: rows from first to last, each from left to right."""
    count, height, width = distance.shape
    line = np.arange(width, dtype=np.float32) * np.float32(_STRAIGHT)
    padded = np.full((count, height + 2, width + 4), np.float32(1e4))
    padded[:, 2:, 2:-2] = distance
    for row in range(2, height + 2):
        above, higher = padded[:, row - 1], padded[:, row - 2]
        best = padded[:, row, 2:-2]
        # Neighbours one and two pixels to the left and right, in the row above and the one above that.
        diagonal = np.minimum(above[:, 1:-3], above[:, 3:-1])
        knight = np.minimum(above[:, :-4], above[:, 4:])
        np.minimum(knight, higher[:, 1:-3], out=knight)
        np.minimum(knight, higher[:, 3:-1], out=knight)
        for source, cost in ((above[:, 2:-2], _STRAIGHT), (diagonal, _DIAGONAL), (knight, _KNIGHT)):
            np.minimum(best, source + np.float32(cost), out=best)
        best[...] = np.minimum.accumulate(best - line, axis=1) + line
    distance[...] = padded[:, 2:, 2:-2]


def _equalized(levels: np.ndarray) -> np.ndarray:
    """Histogram equalization of each image of uint8 (N, H, W)."""
    count, pixels = len(levels), levels[0].size
    flat = levels.reshape(count, -1).astype(np.int64) + 256 * np.arange(count)[:, None]
    histogram = np.bincount(flat.ravel(), minlength=256 * count).reshape(count, 256)
    below = np.cumsum(histogram, axis=1)
    first = np.take_along_axis(histogram, levels.reshape(count, -1).min(axis=1)[:, None].astype(np.int64), axis=1)
    scale = np.float32(255) / np.maximum(pixels - first, 1).astype(np.float32)
    table = np.clip(np.rint((below - first) * scale), 0, 255).astype(np.uint8)
    # A uniform image keeps its level.
    table = np.where(first == pixels, np.arange(256, dtype=np.uint8), table)
    return table.reshape(-1).take(flat).reshape(levels.shape)


@functools.lru_cache(maxsize=32)
def _gaussian(size: int, deviation: float) -> np.ndarray:
    return gaussian_matrix(size, deviation, "nearest", 4.0)


CORRUPTIONS = {"spatter": spatter}
