"""Brightness, saturation and contrast, with the published generator's rounding: float64, operation by operation."""

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import to_bytes

_LEVELS = np.arange(256) / 255.0

# Where value, middle and lowest go in red, green, blue: per sixth of the hue circle, 0 value, 1 middle, 2 lowest.
_PLACES = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1]], np.uint8)


def brightness(images: np.ndarray, added: float, draws: Draws) -> np.ndarray:
    """``added`` to the value of hue, saturation and value."""
    return _in_hsv(images, lambda saturation, value: (saturation, np.clip(value + added, 0, 1)))


def saturate(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """The saturation of hue, saturation and value times a factor, plus a constant."""
    factor, added = parameters
    return _in_hsv(images, lambda saturation, value: (np.clip(saturation * factor + added, 0, 1), value))


def contrast(images: np.ndarray, factor: float, draws: Draws) -> np.ndarray:
    """Distances to each channel's mean times ``factor``."""
    pixels = images / 255.0
    means = np.mean(pixels, axis=(1, 2), keepdims=True)
    pixels -= means
    pixels *= factor
    pixels += means
    np.clip(pixels, 0, 1, out=pixels)
    pixels *= 255
    return pixels.astype(np.uint8)


def _in_hsv(images: np.ndarray, change) -> np.ndarray:
    """``change(saturation, value)`` between the colour spaces."""
    red, green, blue = (_LEVELS.take(images[..., channel]) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    delta = value - np.minimum(np.minimum(red, green), blue)
    grey = delta == 0
    divisor = np.where(grey, 1.0, delta)
    saturation = delta / np.where(grey, 1.0, value)
    sixth, rest = _hue(red, green, blue, value, divisor)
    sixth[grey], rest[grey] = 0, 0.0
    saturation, value = change(saturation, value)
    # Below the middle the colour rises towards the next sixth, above it falls.
    rest = np.where(sixth & 1, rest, 1 - rest)
    parts = (value, value * (1 - rest * saturation), value * (1 - saturation))
    levels = np.stack([(np.clip(part, 0, 1) * 255).astype(np.uint8) for part in parts], axis=-1)
    return np.take_along_axis(levels, _PLACES[sixth], axis=-1)


def _hue(red, green, blue, value, divisor) -> tuple[np.ndarray, np.ndarray]:
    """Which sixth of the hue circle, uint8 0 to 5, and how far into it, float64 0 to 1."""
    hue = (red - green) / divisor + 4.0
    hue = np.where(green == value, (blue - red) / divisor + 2.0, hue)
    hue = np.where(blue == value, (red - green) / divisor + 4.0, hue)
    hue = np.where((red == value) & (green < value) & (blue < value), (green - blue) / divisor, hue)
    hue /= 6.0
    hue += hue < 0
    hue *= 6
    sixth = np.floor(hue)
    hue -= sixth
    return sixth.astype(np.uint8) % 6, hue


CORRUPTIONS = {"brightness": brightness, "contrast": contrast, "saturate": saturate}
