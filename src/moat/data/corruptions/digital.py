"""Pixelation and JPEG compression with Pillow, as in the published generators."""

from io import BytesIO

import numpy as np
from PIL import Image

from moat.data.corruptions.draws import Draws


def pixelate(images: np.ndarray, scale: float, draws: Draws) -> np.ndarray:
    """Shrink and enlarge again, both with a box filter."""
    size = images.shape[1]
    small = max(1, int(size * scale))
    result = np.empty_like(images)
    for number, image in enumerate(images):
        shrunk = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
        result[number] = shrunk.resize((size, size), Image.Resampling.BOX)
    return result


def jpeg_compression(images: np.ndarray, quality: int, draws: Draws) -> np.ndarray:
    """Save as JPEG of this quality and load again."""
    result = np.empty_like(images)
    for number, image in enumerate(images):
        with BytesIO() as file:
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            result[number] = Image.open(file)
    return result


CORRUPTIONS = {"pixelate": pixelate, "jpeg_compression": jpeg_compression}
