"""Snow and fog."""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.motion import blur_along
from moat.data.corruptions.pixels import separable, to_bytes, zoom_matrix

# Luma weights of red, green and blue (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Of the plasma's first step; the noise added there is up to its square.
_WIBBLE = 100.0


def snow(images: np.ndarray, parameters: tuple[float, ...], draws: Draws) -> np.ndarray:
    """Add motion-blurred flakes, once as drawn and once rotated by 180 degrees, to a whitened image."""
    mean, deviation, zoom, threshold, radius, fall, mix = parameters
    size = images.shape[1]
    layer = mean + deviation * draws.normal((size, size))
    if zoom != 1:
        layer = separable(layer, _zoom(size, zoom))
    layer[layer < threshold] = 0
    flakes = to_bytes(layer * np.float32(255))[..., None]
    flakes = blur_along(flakes, radius, fall, draws.between(-135.0, -45.0)).astype(np.float32)
    flakes += flakes[:, ::-1, ::-1].copy()
    pixels = images.astype(np.float32)
    white = (pixels @ _LUMA)[..., None] * np.float32(1.5) + np.float32(127.5)
    return to_bytes(np.float32(mix) * pixels + np.float32(1 - mix) * np.maximum(pixels, white) + flakes)


def fog(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Add plasma, and rescale so that the image's brightest value stays what it was."""
    density, decay = parameters
    size = images.shape[1]
    brightest = images.max(axis=(1, 2, 3)).astype(np.float32) / np.float32(255)
    scale = (brightest / (brightest + np.float32(density)))[:, None, None, None]
    added = plasma(1 << (size - 1).bit_length(), decay, draws)[:, :size, :size, None] * np.float32(255 * density)
    return to_bytes((images + added) * scale)


def plasma(size: int, decay: float, draws: Draws) -> np.ndarray:
    """Height maps by the diamond-square algorithm on a torus, float32 (N, size, size) from 0 to 1.

    Args:
        size: a power of two.
        decay: the factor by which the noise shrinks from one scale to the next finer one.
    """
    grid = np.zeros((len(draws), size, size), np.float32)
    step, wibble = size, _WIBBLE
    while step >= 2:
        half = step // 2
        corners = grid[:, ::step, ::step]
        sums = corners + np.roll(corners, -1, axis=1)
        sums += np.roll(sums, -1, axis=2)
        middles = grid[:, half::step, half::step]
        middles[...] = _wibbled(sums, wibble, draws)
        up_left = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        grid[:, ::step, half::step] = _wibbled(up_left, wibble, draws)
        left_up = middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        grid[:, half::step, ::step] = _wibbled(left_up, wibble, draws)
        step, wibble = half, wibble / decay
    grid -= grid.min(axis=(1, 2), keepdims=True)
    grid /= grid.max(axis=(1, 2), keepdims=True)
    return grid


def _wibbled(sums: np.ndarray, wibble: float, draws: Draws) -> np.ndarray:
    """The means of four neighbours, given their sums, plus noise of up to ``wibble`` squared, as published."""
    return sums / 4 + np.float32(wibble * wibble) * draws.uniform(sums.shape[1:])


@functools.lru_cache(maxsize=32)
def _zoom(size: int, factor: float) -> np.ndarray:
    return zoom_matrix(size, factor).astype(np.float32)


CORRUPTIONS = {"snow": snow, "fog": fog}
