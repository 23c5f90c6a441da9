"""Brightness, saturation and contrast, rounded as by the published generator: float64, operation by operation."""

import numpy as np

from moat.data.corruptions.draws import Draws

# For red, green and blue: the sixths of the hue circle (bits 0 to 5) in which the channel has the largest value, and
# those in which it has the middle one.
_PLACES = ((0b100001, 0b010010), (0b000110, 0b001001), (0b011000, 0b100100))


def brightness(images: np.ndarray, added: float, draws: Draws) -> np.ndarray:
    """Add ``added`` to the value in HSV."""
    return _in_hsv(images, lambda saturation, value: (saturation, np.clip(value + added, 0, 1)))


def saturate(images: np.ndarray, parameters: tuple[float, float], draws: Draws) -> np.ndarray:
    """Multiply the saturation in HSV by a factor and add a constant."""
    factor, added = parameters
    return _in_hsv(images, lambda saturation, value: (np.clip(saturation * factor + added, 0, 1), value))


def contrast(images: np.ndarray, factor: float, draws: Draws) -> np.ndarray:
    """Scale the differences to each channel's mean by ``factor``."""
    pixels = images / 255.0
    means = np.mean(pixels, axis=(1, 2), keepdims=True)
    pixels -= means
    pixels *= factor
    pixels += means
    np.clip(pixels, 0, 1, out=pixels)
    pixels *= 255
    return pixels.astype(np.uint8)


def _in_hsv(images: np.ndarray, change) -> np.ndarray:
    """Convert to HSV, apply ``change(saturation, value)``, and convert back."""
    red, green, blue = (np.ascontiguousarray(images[..., channel]) for channel in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    grey = highest == lowest
    value = highest / 255.0
    delta = value - lowest / 255.0
    delta[grey] = 1
    sixth, rest = _hue((red, green, blue), highest, grey, delta)
    delta[grey] = 0
    saturation = np.divide(delta, value, out=np.zeros_like(delta), where=highest > 0)
    saturation, value = change(saturation, value)
    # The middle value falls within odd sixths of the circle and rises within even ones.
    np.subtract(1, rest, out=rest, where=(sixth & 1) == 0)
    parts = (value, value * (1 - rest * saturation), value * (1 - saturation))
    top, middle, bottom = ((np.clip(part, 0, 1, out=part) * 255).astype(np.uint8) for part in parts)
    result = np.empty_like(images)
    for channel, (tops, middles) in enumerate(_PLACES):
        inner = np.where((middles >> sixth) & 1, middle, bottom)
        result[..., channel] = np.where((tops >> sixth) & 1, top, inner)
    return result


def _hue(channels, highest: np.ndarray, grey: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sixth of the hue circle, uint8 0 to 5, and the position in it, float64 0 to 1; 0 and 0 for grey."""
    red, green, blue = channels
    # Ties for the highest channel go to blue, then to green.
    is_blue = (blue == highest) & ~grey
    is_green = (green == highest) & ~is_blue & ~grey
    plus = np.where(is_blue, red, np.where(is_green, blue, green))
    minus = np.where(is_blue, green, np.where(is_green, red, blue))
    hue = plus / 255.0
    hue -= minus / 255.0
    hue /= delta
    hue += 4 * is_blue.view(np.uint8) + 2 * is_green.view(np.uint8)
    hue /= 6
    hue += hue < 0
    hue *= 6
    sixth = hue.astype(np.uint8)
    hue -= sixth
    sixth[sixth == 6] = 0
    return sixth, hue


CORRUPTIONS = {"brightness": brightness, "contrast": contrast, "saturate": saturate}
