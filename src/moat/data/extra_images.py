"""Additional training images, such as generated ones, mixed into the epochs of a data set."""

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from moat.base.errors import DataError, unknown_name
from moat.base.files import hash_file
from moat.data.datasets import Split
from moat.data.seeding import generator


@dataclass(frozen=True)
class Mixture:
    """The rows of each epoch over ``own`` images of the data set, followed by ``extra`` additional ones.

    An epoch has as many images as the data set, ``round(fraction * own)`` of them extra ones, in random order. The rows
    are sampled anew each epoch, without replacement; extra images repeat only if there are fewer than an epoch needs.
    """

    own: int
    extra: int
    fraction: float

    def __len__(self) -> int:
        return self.own

    def __call__(self, seed: int, epoch: int) -> torch.Tensor:
        """Row numbers (own,), int64 on the CPU."""
        random = generator(seed, epoch, "extra images")
        wanted = round(self.fraction * self.own)
        rounds = math.ceil(wanted / self.extra)
        extra = torch.cat(
            [torch.randperm(self.extra, generator=random) for _ in range(rounds)] or [torch.empty(0).long()]
        )
        own = torch.randperm(self.own, generator=random)[: self.own - wanted]
        rows = torch.cat([own, self.own + extra[:wanted]])
        return rows[torch.randperm(self.own, generator=random)]


def load(path: Path, *, sha256: str, image_size: int, channels: int, num_classes: int) -> Split:
    """Load an .npz or .safetensors file with ``image`` uint8 (N, H, W, C) and ``label`` integer (N,).

    Published files of generated images use these names.

    Raises:
        DataError: the file is missing, damaged, has another ``sha256``, or does not fit the data set; names the file,
            what was found and what is allowed.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise DataError("extra images: " + unknown_name(path.suffix, _READERS, what=f"ending of {path}:"))
    if not path.is_file():
        raise DataError(f"{path}: no such file; extra_images.file of the recipe names it")
    there = hash_file(path)
    if there != sha256:
        raise DataError(f"{path}: has the sha256 {there}; extra_images.sha256 of the recipe says {sha256}")
    found = _READERS[path.suffix](path)
    for name in ("image", "label"):
        if name not in found:
            raise DataError(f"{path}: no array {name!r}; it has: {', '.join(sorted(found)) or 'none'}")
    images, labels, shape = found["image"], found["label"], (image_size, image_size, channels)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        allowed = ", ".join(map(str, shape))
        raise DataError(f"{path}: 'image' is {images.dtype} {images.shape}; allowed: uint8 (1 or more, {allowed})")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: 'label' is {labels.dtype} {labels.shape}; allowed: whole numbers ({len(images)},)")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}; allowed: 0 to {num_classes - 1}")
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # No pickles, which can run code.
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in ("image", "label")}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a whole .npz file of plain arrays ({error})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error


_READERS: Mapping[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
