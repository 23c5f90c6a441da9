"""The description of a data set that is a plain folder of images, from what is in the folder."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moat.base.errors import ConfigError, DataError
from moat.data import image_formats

#: What the test split is called where it is not called test.
_TESTED_ON = ("val", "valid", "validation")
#: Images held out of the training split to choose the best epoch: a tenth. Pixels that crops are padded by: an eighth.
_HELD_OUT, _PADDING = 10, 8


def name_of(folder: Path) -> str:
    """The name of a folder's data set: that of the folder in lower case, with ``-`` for what names do not have.

    Raises:
        ConfigError: nothing of it is left.
    """
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    if not name:
        raise ConfigError(f"{folder}: its name gives no name of a data set; allowed: letters a to z, digits and -")
    return name


def describe(folder: Path, *, image_size: int | None = None) -> dict[str, Any]:
    """Describe a folder of images as the files of ``config/datasets/`` do.

    Args:
        folder: ``<class>/*``, or ``train/<class>/*`` and ``test/<class>/*``.
        image_size: pixels a side; None: that of the images, which then must be square and of one size.

    Returns:
        The description; ``mean`` and ``std`` are over all pixels of the training images, three channels each.

    Raises:
        ConfigError: images of several sizes, and no ``image_size``.
        DataError: no such folder, no images in folders of classes, or an image that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    name, side = name_of(folder), image_size or _side(folder)
    if side < 4:
        raise ConfigError(f"{folder}: images of {side} x {side} pixels; allowed: at least 4")
    spec = {
        "name": name,
        "title": folder.resolve().name,
        "format": "image_folder",
        "files": [],
        "folder": str(folder),
        **_layout(folder),
        "channels": 3,
        "image_size": side,
    }
    raw = image_formats.image_folder(spec, {"folder": folder}, side)
    if len(raw.classes) < 2:
        raise DataError(f"{folder}: one class, {raw.classes[0]!r}; needed: two or more, a folder each")
    pixels = raw.splits["train"][0].reshape(-1, 3)
    statistics = _statistics(pixels)
    return {
        **spec,
        "num_classes": len(raw.classes),
        "images": {split: len(labels) for split, (_, labels) in raw.splits.items()},
        **statistics,
        "augment": {"crop_padding": side // _PADDING, "flip": True},
        "validation": len(raw.splits["train"][1]) // _HELD_OUT,
        "licence": "not stated",
    }


def _layout(folder: Path) -> dict[str, Any]:
    """The test split's name, where it is another than the usual one."""
    if not image_formats.has_classes(folder / "train") or (folder / "test").is_dir():
        return {}
    named = [each for each in _TESTED_ON if image_formats.has_classes(folder / each)]
    return {"layout": {"train": "train", "test": named[0]}} if named else {}


def _side(folder: Path) -> int:
    sizes = image_formats.sizes(folder)
    if not sizes:
        raise DataError(f"{folder}: no images; needed: <class>/*, or train/<class>/* and test/<class>/*")
    if len(sizes) > 1 or len(set(next(iter(sizes)))) > 1:
        least, most = (
            f"{width} x {height}" for width, height in (min(sizes, key=math.prod), max(sizes, key=math.prod))
        )
        raise ConfigError(
            f"{folder}: images from {least} to {most} pixels, but nets need squares of one size; say it with "
            "--image-size N: the shorter side becomes N pixels long, and the centre is cut out"
        )
    return next(iter(sizes))[0]


def _statistics(pixels: np.ndarray) -> Mapping[str, list[float]]:
    """Mean and standard deviation per channel, for pixels in [0, 1]."""
    # In integers, so that no order of summation counts.
    values = pixels.astype(np.int64)
    mean = values.sum(0) / len(values)
    variance = (values**2).sum(0) / len(values) - mean**2
    # Images of one colour are divided by a step of 8-bit pixels, not by zero.
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1)
    return {
        "mean": [round(float(each) / 255, 4) for each in mean],
        "std": [round(float(each) / 255, 4) for each in std],
    }
