"""A dataset as it is in its files, and helpers of the readers in :mod:`moat.data.formats`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moat.base.errors import DataError

Spec = Mapping[str, Any]
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Raw:
    """A dataset as it is in its files, before any split, limit or resizing.

    Attributes:
        splits: "train" and/or "test" -> (images uint8 (N, H, W, C), labels int (N,)).
        classes: names in label order, if the files have them.
        columns: further columns (N,) of the test split.
        extra: further entries of the prepared file's metadata.
        blocks: how many times the test split repeats the same images; more than 1 only for corrupted images.
    """

    splits: dict[str, Pair]
    classes: list[str] | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    blocks: int = 1


def listed(value: str | list[str]) -> list[str]:
    """A single name as a list."""
    return [value] if isinstance(value, str) else list(value)


def only(spec: Spec, files: Mapping[str, Path]) -> Path:
    """The single file of a dataset. Raises DataError if there are several."""
    if len(files) != 1:
        raise DataError(
            f"dataset {spec['name']}: format {spec['format']} reads one file or folder; there are {len(files)}"
        )
    return next(iter(files.values()))


def role(spec: Spec, files: Mapping[str, Path], role: str) -> Path:
    """The file with ``role:`` in the dataset's description. Raises DataError if there is none."""
    for file in spec["files"]:
        if file.get("role") == role:
            return files[file["name"]]
    raise DataError(f"dataset {spec['name']}: format {spec['format']} needs a file with role: {role}")


def require(path: Path, wanted: set[str], found: Mapping[str, Any]) -> None:
    """Raise DataError unless all ``wanted`` members of the archive ``path`` were found."""
    missing = sorted(wanted - set(found))
    if missing:
        raise DataError(f"{path}: no member {', '.join(missing)} in this archive")
