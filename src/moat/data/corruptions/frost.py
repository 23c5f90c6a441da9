"""Frost. The published generators crop it from five photographs; here the textures are synthetic.

Their brightness, colour, contrast and spatial correlation match what published corrupted images show of the
photographs, so that they do about the same damage; they have no feathers or needles of ice. If the official files are
at hand, take frost from them.
"""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import to_bytes

# Approximate side of a texture, in pixels of the image that it is laid over.
_SIDE = 256
# The scale of the photographs on images of 32 pixels, for which the values below hold.
_PHOTOGRAPH_SCALE = 0.2
_BRIGHTNESS = (110.0, 135.0, 165.0, 200.0, 207.0)
_CONTRAST = 23.0
# For red, green and blue: the offset from the mean level at 169, and the slope against the mean level.
_TINT = ((-16.0, 1.25), (2.0, 0.9), (13.0, 0.85))
_MIDDLE = 169.0
# Fraction of the variance and smoothing in pixels of each layer; the last one varies from place to place.
_LAYERS = ((0.58, 0.0), (0.22, 1.0), (0.2, 5.0), (0.19, 40.0))


def frost(images: np.ndarray, parameters: tuple[float, float, float], draws: Draws) -> np.ndarray:
    """A weighted sum of the image and a random crop of one of the five textures."""
    weight, frost_weight, scale = parameters
    size = images.shape[1]
    textures = _textures(scale / _PHOTOGRAPH_SCALE)
    side = textures.shape[1]
    which = draws.randint(len(textures))
    top, left = draws.randint(side, (2,)).T
    line = np.arange(size)
    rows, columns = (top[:, None] + line) % side, (left[:, None] + line) % side
    pieces = textures[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    return to_bytes(np.float32(weight) * images + np.float32(frost_weight) * pieces)


@functools.lru_cache(maxsize=4)
def _textures(enlarged: float) -> np.ndarray:
    """The periodic textures, float32 (5, side, side, 3), levels 0 to 255."""
    from scipy.ndimage import zoom

    side = round(_SIDE / enlarged)
    levels = np.stack([_levels(number, mean, side) for number, mean in enumerate(_BRIGHTNESS)])
    pixels = np.stack([_MIDDLE + offset + slope * (levels - _MIDDLE) for offset, slope in _TINT], axis=-1)
    if enlarged != 1:
        pixels = zoom(pixels, (1, enlarged, enlarged, 1), order=1, mode="grid-wrap", grid_mode=True)
    return np.clip(pixels, 0, 255).astype(np.float32)


def _levels(number: int, mean: float, side: int) -> np.ndarray:
    """The grey levels of a texture (side, side): its mean over red, green and blue."""
    from scipy.ndimage import gaussian_filter

    # Keyed by the texture's number, so that the textures are the same for every seed.
    noise = Draws([number]).normal((len(_LAYERS), side, side))[0].astype(np.float64)
    total = np.full((side, side), mean)
    for (fraction, reach), layer in zip(_LAYERS, noise, strict=True):
        smooth = gaussian_filter(layer, reach, mode="wrap") if reach else layer
        total += _CONTRAST * np.sqrt(fraction) * (smooth - smooth.mean()) / smooth.std()
    return total


CORRUPTIONS = {"frost": frost}
