"""Frost. The published generators cut theirs out of five photographs; these textures are computed instead.

Their brightness, colour, contrast and correlation from pixel to pixel follow what published corrupted images show of
the photographs, so that the damage is about as large; feathers and needles of ice they have none. Where official
files exist, frost is to be taken from them.
"""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import to_bytes

# Of a texture, about; in pixels of the image that it falls on.
_SIDE = 256
# At the size at which photographs of frost are used on images of 32 pixels.
_PHOTOGRAPH_SCALE = 0.2
_BRIGHTNESS = (110.0, 135.0, 165.0, 200.0, 207.0)
_CONTRAST = 23.0
# Of red, green and blue: distance to the mean level when that is 169, and slope against it.
_TINT = ((-16.0, 1.25), (2.0, 0.9), (13.0, 0.85))
_MIDDLE = 169.0
# Share of the variance and reach in pixels of each layer; the last one is what makes one spot differ from another.
_LAYERS = ((0.58, 0.0), (0.22, 1.0), (0.2, 5.0), (0.19, 40.0))


def frost(images: np.ndarray, parameters: tuple[float, float, float], draws: Draws) -> np.ndarray:
    """A weighted sum of the image and of a random piece of one of five textures."""
    weight, frost_weight, scale = parameters
    size = images.shape[1]
    textures = _textures(scale / _PHOTOGRAPH_SCALE)
    side = textures.shape[1]
    which = draws.below(len(textures))
    top, left = draws.below(side, (2,)).T
    line = np.arange(size)
    rows, columns = (top[:, None] + line) % side, (left[:, None] + line) % side
    pieces = textures[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    return to_bytes(np.float32(weight) * images + np.float32(frost_weight) * pieces)


@functools.lru_cache(maxsize=4)
def _textures(enlarged: float) -> np.ndarray:
    """The textures, each continuing itself at its edges: float32 (5, side, side, 3), levels 0 to 255."""
    from scipy.ndimage import zoom

    side = round(_SIDE / enlarged)
    levels = np.stack([_levels(number, mean, side) for number, mean in enumerate(_BRIGHTNESS)])
    pixels = np.stack([_MIDDLE + offset + slope * (levels - _MIDDLE) for offset, slope in _TINT], axis=-1)
    if enlarged != 1:
        pixels = zoom(pixels, (1, enlarged, enlarged, 1), order=1, mode="grid-wrap", grid_mode=True)
    return np.clip(pixels, 0, 255).astype(np.float32)


def _levels(number: int, mean: float, side: int) -> np.ndarray:
    """One texture's mean of red, green and blue (side, side)."""
    from scipy.ndimage import gaussian_filter

    # The texture is the same for every seed: its key is its number.
    noise = Draws([number]).normal((len(_LAYERS), side, side))[0].astype(np.float64)
    total = np.full((side, side), mean)
    for (share, reach), layer in zip(_LAYERS, noise, strict=True):
        smooth = gaussian_filter(layer, reach, mode="wrap") if reach else layer
        total += _CONTRAST * np.sqrt(share) * (smooth - smooth.mean()) / smooth.std()
    return total


CORRUPTIONS = {"frost": frost}
