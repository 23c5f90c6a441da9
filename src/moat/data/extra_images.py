"""A file of further training images, for example generated ones, and how they are mixed with the data set's own."""

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moat.base.errors import DataError, unknown_name
from moat.base.files import hash_file
from moat.data.datasets import Split
from moat.data.seeding import generator


@dataclass(frozen=True)
class Mixture:
    """The rows of an epoch over ``own`` images of the data set, followed by ``extra`` others.

    An epoch has as many images as the data set, ``round(share * own)`` of them extra ones, all in random order. Each
    epoch draws its rows anew, without replacement; extra images are repeated only where they are fewer than asked for.
    """

    own: int
    extra: int
    share: float

    def __len__(self) -> int:
        return self.own

    def __call__(self, seed: int, epoch: int) -> torch.Tensor:
        """Row numbers (own,), int64 on the CPU."""
        random = generator(seed, epoch, "extra images")
        wanted = round(self.share * self.own)
        rounds = math.ceil(wanted / self.extra)
        extra = torch.cat(
            [torch.randperm(self.extra, generator=random) for _ in range(rounds)] or [torch.empty(0).long()]
        )
        own = torch.randperm(self.own, generator=random)[: self.own - wanted]
        rows = torch.cat([own, self.own + extra[:wanted]])
        return rows[torch.randperm(self.own, generator=random)]


def load(path: Path, *, sha256: str, image_size: int, channels: int, num_classes: int) -> Split:
    """The images of an .npz or .safetensors file: ``image`` uint8 (N, H, W, C) and ``label`` whole numbers (N,).

    These are the names in the files of generated images that are commonly published.

    Raises:
        DataError: the file is missing, not the one that ``sha256`` names, damaged, or not of this data set's kind;
            names the file, what was found and what is allowed.
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
    _check(path, found["image"], found["label"], (image_size, image_size, channels), num_classes)
    return Split(torch.from_numpy(found["image"]), torch.from_numpy(found["label"].astype(np.int64)))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # Never pickles: they run code.
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in ("image", "label")}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a whole .npz file of plain arrays ({error})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error


_READERS: Mapping[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


def _check(path: Path, images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...], num_classes: int) -> None:
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        wanted = ", ".join(map(str, shape))
        raise DataError(f"{path}: 'image' is {images.dtype} {images.shape}; allowed: uint8 (1 or more, {wanted})")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: 'label' is {labels.dtype} {labels.shape}; allowed: whole numbers ({len(images)},)")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}; allowed: 0 to {num_classes - 1}")
