"""A dataset as its files hold it, and what the readers of :mod:`moat.data.formats` share."""

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
    """A dataset as its files hold it.

    Attributes:
        splits: "train" and/or "test" -> (images uint8 (N, H, W, C), labels int (N,)).
        classes: names in label order, where the files say them.
        columns: further columns (N,) of the test split.
        extra: what else the prepared file's metadata should say.
        blocks: how many times the test split goes through the same images; 1 unless they are corrupted.
    """

    splits: dict[str, Pair]
    classes: list[str] | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    blocks: int = 1


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def only(spec: Spec, files: Mapping[str, Path]) -> Path:
    if len(files) != 1:
        raise DataError(
            f"dataset {spec['name']}: format {spec['format']} reads one file or folder; there are {len(files)}"
        )
    return next(iter(files.values()))


def role(spec: Spec, files: Mapping[str, Path], role: str) -> Path:
    for file in spec["files"]:
        if file.get("role") == role:
            return files[file["name"]]
    raise DataError(f"dataset {spec['name']}: format {spec['format']} needs a file with role: {role}")


def require(path: Path, wanted: set[str], found: Mapping[str, Any]) -> None:
    missing = sorted(wanted - set(found))
    if missing:
        raise DataError(f"{path}: no member {', '.join(missing)} in this archive")
