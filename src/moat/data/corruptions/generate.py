"""Apply corruptions to images."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from moat.base.errors import ConfigError, DataError, unknown_name
from moat.data.corruptions import blur, colour, digital, elastic, frost, motion, noise, spatter, weather
from moat.data.corruptions.draws import Draws
from moat.data.corruptions.severities import PARAMETERS, SEVERITIES, setting_name
from moat.data.seeding import derive_seed

FUNCTIONS = {
    name: function
    for module in (noise, blur, motion, weather, frost, spatter, colour, digital, elastic)
    for name, function in module.CORRUPTIONS.items()
}

# Values processed at once, few enough to stay in a core's cache; more for the corruptions that group similar images.
_VALUES = 2**17
_GROUPED_VALUES = 2**21
_GROUPED = ("motion_blur", "snow", "spatter")
_SMALLEST = 4


def corrupt(
    images_uint8_NHWC: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int,
    severities: Literal["cifar10-c", "imagenet-c"] = "cifar10-c",
    indices: Sequence[int] | None = None,
) -> np.ndarray:
    """Corrupt images as the suite of this corruption does; returns uint8 (N, H, W, C).

    An image's random numbers depend only on ``seed``, the corruption, the severity and the image's index. These
    corruptions are deterministic and, except for rounding, equal to the published generator's: defocus_blur,
    zoom_blur, brightness, contrast, pixelate, jpeg_compression, gaussian_blur, saturate. ``frost`` differs from the
    published one: its textures are synthetic instead of photographs.

    Args:
        images_uint8_NHWC: uint8 (N, H, W, 3), or grey (N, H, W, 1), which is corrupted as three equal channels, of
            which the first is returned; square, at least 4 pixels a side.
        name: one of ``moat.data.corruptions.severities.NAMES``, such as ``"fog"``.
        severity: 1 to 5.
        severities: the parameters to use. ImageNet-C's are meant for 224 pixels, and far harsher on small images.
        indices: each image's index in its data set; default: 0 to N-1.

    Raises:
        ConfigError: unknown name, severity or severities.
        DataError: not such images, or a different number of indices than images.
    """
    indices = range(len(images_uint8_NHWC)) if indices is None else indices
    purpose = f"evaluate {setting_name(name, severity, severities)}"
    keys = [derive_seed(seed, 0, purpose, int(index)) for index in indices]
    return corrupt_with_keys(images_uint8_NHWC, name, severity, keys=keys, severities=severities)


def corrupt_with_keys(
    images: np.ndarray, name: str, severity: int, *, keys: Sequence[int], severities: str = "cifar10-c"
) -> np.ndarray:
    """:func:`corrupt` with the key of each image's random numbers, an integer from 0 to 2**64 - 1."""
    if severities not in PARAMETERS:
        raise ConfigError(unknown_name(severities, PARAMETERS, what="severities"))
    if name not in PARAMETERS[severities]:
        raise ConfigError(unknown_name(name, PARAMETERS[severities], what="corruption"))
    if severity not in SEVERITIES or isinstance(severity, bool):
        raise ConfigError(f"severity {severity!r} of corruption {name}: allowed are {', '.join(map(str, SEVERITIES))}")
    parameters = PARAMETERS[severities][name][severity - 1]
    _check_images(images, keys)
    colour_images = images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)
    result = np.empty_like(colour_images)
    values = _GROUPED_VALUES if name in _GROUPED else _VALUES
    size = max(1, values // colour_images[0].size) if len(images) else 1
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        chunk = np.ascontiguousarray(colour_images[part])
        result[part] = FUNCTIONS[name](chunk, parameters, Draws(keys[part]))
    return result if images.shape[3] == 3 else result[..., :1].copy()


def _check_images(images: np.ndarray, keys: Sequence[int]) -> None:
    fits = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
    if not fits or images.shape[1] != images.shape[2] or images.shape[1] < _SMALLEST or images.shape[3] not in (1, 3):
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(
            f"images to corrupt are {found}; allowed: a numpy array, uint8 (N, H, W, C), H = W from {_SMALLEST}, "
            "C 1 or 3"
        )
    if len(keys) != len(images):
        raise DataError(f"{len(keys)} indices for {len(images)} images; one for each is needed")
