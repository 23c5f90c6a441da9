"""Decode and resize images: uint8 arrays of one size from image files or from pixel arrays."""

import io
import warnings

import numpy as np
from PIL import Image

from moat.base.errors import DataError

_MODES = {1: "L", 3: "RGB"}
# Pillow knows more, of which some start other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
# How much longer than wide an image may be: resized, its longer side grows with it.
_MAX_RATIO = 100


def decode(content: bytes, size: int, channels: int, *, where: str) -> np.ndarray:
    """Decode an image file to uint8 (size, size, channels), converted to grey or RGB.

    Args:
        where: names the image in the error message.

    Raises:
        DataError: the image cannot be decoded; says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if max(image.size) > _MAX_RATIO * min(image.size):
                    raise ValueError(f"{image.width} x {image.height} pixels: more than {_MAX_RATIO} times as long")
                pixels = np.asarray(_fit(_eight_bits(image).convert(_MODES[channels]), size))
    # On corrupt content Pillow raises almost any exception.
    except Exception as error:
        raise DataError(f"{where}: corrupt image ({' '.join(str(error).split()) or type(error).__name__})") from error
    return pixels.reshape(size, size, channels)


def size(content: bytes, *, where: str) -> tuple[int, int]:
    """Width and height of an image file, of which only the header is read.

    Raises:
        DataError: it is no image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return image.size
    # On corrupt content Pillow raises almost any exception.
    except Exception as error:
        raise DataError(f"{where}: corrupt image ({' '.join(str(error).split()) or type(error).__name__})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel scaled to 8, which Pillow would cut at 255; any other as it is."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (Pillow's mode {image.mode}), whose range is unknown")
    return image


def fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Resize images uint8 (N, H, W, C) to (N, size, size, channels) as :func:`decode` does.

    Grey images become RGB if three channels are wanted; RGB images never become grey.
    """
    if images.shape[3] == 1 and channels == 3:
        images = np.repeat(images, 3, axis=3)
    if images.shape[1:3] == (size, size):
        return images
    result = np.empty((len(images), size, size, channels), np.uint8)
    for index, image in enumerate(images):
        pillow = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        result[index] = np.asarray(_fit(pillow, size)).reshape(size, size, channels)
    return result


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` (bilinear, antialiased), then crop the centre square."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    shorter = min(width, height)
    width, height = max(size, round(width * size / shorter)), max(size, round(height * size / shorter))
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
