"""Prepared datasets: write the official files as one safetensors file per dataset and scale, and load that file.

For each split (train, val and test; CIFAR-10-C has only test) the file holds ``<split>.images`` uint8 (N, H, W, C),
``<split>.labels`` int64 (N,) and ``<split>.index`` int64 (N,), the row numbers in the official split; for CIFAR-10-C
also ``test.corruption`` and ``test.severity``. Its metadata is one JSON document under the key "moat". The same files
and parameters give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moat.base.errors import ConfigError, DataError
from moat.base.files import atomic_path
from moat.base.remembered import hash_once
from moat.data import images, manifest
from moat.data.formats import READERS
from moat.data.raw import Raw
from moat.data.splits import hold_out, stratified_order, subset

if TYPE_CHECKING:
    import torch

#: Incremented whenever the same inputs would give a different file.
VERSION = 1


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, C), labels int64 (N,), and further int64 columns (N,) such as ``index``."""

    images: "torch.Tensor"
    labels: "torch.Tensor"
    columns: Mapping[str, "torch.Tensor"] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset in memory.

    Attributes:
        name: as in ``config/datasets/<name>.yaml``.
        classes: names in label order.
        mean, std: per channel, of pixels in [0, 1].
        augment: {"crop_padding": pixels at this image size, "flip": bool}.
        image_size: height and width in pixels.
        splits: "train", "val", "test" -> :class:`Split`.
        sha256: the prepared file's hash.
        metadata: the prepared file's metadata.
    """

    name: str
    classes: list[str]
    mean: list[float]
    std: list[float]
    augment: dict[str, Any]
    image_size: int
    splits: dict[str, Split]
    sha256: str
    metadata: dict[str, Any]


# -- prepare ---------------------------------------------------------------
def prepare(
    spec: Mapping[str, Any],
    source: Path,
    out: Path,
    *,
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation: int | None = None,
) -> None:
    """Read fetched files and write the prepared dataset to ``out``, atomically.

    The validation images are held out of the training split by a fixed permutation, before ``train_limit`` applies.

    Args:
        spec: the dataset's description (``config/datasets/<name>.yaml``).
        source: the folder that :func:`moat.data.fetch.fetch` filled.
        image_size: height and width in pixels; None: as published.
        train_limit, test_limit: the largest number of images, with the classes in proportion; None: all. For CIFAR-10-C
            ``test_limit`` counts the images per corruption and severity.
        validation: number of held-out images; None: as in the description.

    Raises:
        DataError: files that are missing, corrupt, changed since they were fetched, or not as described.
        ConfigError: a parameter that this dataset cannot satisfy.
    """
    found = manifest.read(Path(source), spec["name"])
    files = manifest.verified_files(Path(source), found)
    size = spec["image_size"] if image_size is None else image_size
    held_out = spec["validation"] if validation is None else validation
    _check_parameters(spec, size, train_limit, test_limit, held_out)
    raw = READERS[spec["format"]](spec, files, size)
    count = spec["num_classes"]
    classes = spec.get("classes") or raw.classes or [str(number) for number in range(count)]
    for names, origin in ((classes, "config"), (raw.classes or classes, "files")):
        if len(names) != count:
            raise DataError(f"dataset {spec['name']}: num_classes is {count}, its {origin} name {len(names)} classes")
    tensors = _tensors(spec, raw, size, train_limit, test_limit, held_out)
    parameters = {"image_size": size, "train_limit": train_limit, "test_limit": test_limit, "validation": held_out}
    metadata = _metadata(spec, raw, list(classes), tensors, parameters, found)
    with atomic_path(out) as temporary:
        try:
            save_file(tensors, temporary, metadata={"moat": json.dumps(metadata, sort_keys=True)})
        except SafetensorError as error:
            raise DataError(f"{out}: cannot be written ({error}); nothing was written under this name") from error


def _check_parameters(spec: Mapping[str, Any], size: int, *limits: int | None) -> None:
    names = ("train_limit", "test_limit", "validation")
    for name, value, least in (("image_size", size, 4), *zip(names, limits, (1, 1, 0), strict=True)):
        if value is not None and value < least:
            raise ConfigError(f"{name}={value}; allowed: at least {least}")
    for name in ("mean", "std"):
        if len(spec[name]) != spec["channels"]:
            raise ConfigError(
                f"dataset {spec['name']}: {name} has {len(spec[name])} numbers; needed: {spec['channels']}"
            )


def _tensors(
    spec: Mapping[str, Any], raw: Raw, size: int, train_limit: int | None, test_limit: int | None, validation: int
) -> dict[str, np.ndarray]:
    for split, (pixels, labels) in raw.splits.items():
        _check_split(spec, split, pixels, labels)
    tensors: dict[str, np.ndarray] = {}
    if "train" in raw.splits:
        _, labels = raw.splits["train"]
        if validation >= len(labels):
            raise ConfigError(
                f"dataset {spec['name']}: validation={validation} leaves none of the {len(labels)} training images "
                f"for training; allowed: 0 to {len(labels) - 1}"
            )
        kept, held_out = hold_out(len(labels), validation)
        tensors |= _take(spec, "train", raw.splits["train"], subset(labels, kept, train_limit), size)
        tensors |= _take(spec, "val", raw.splits["train"], held_out, size)
    rows = _test_rows(raw, test_limit)
    tensors |= _take(spec, "test", raw.splits["test"], rows, size)
    tensors["test.index"] = tensors["test.index"] % (len(raw.splits["test"][1]) // raw.blocks)
    return tensors | {f"test.{name}": values[rows].astype(np.int64) for name, values in raw.columns.items()}


def _test_rows(raw: Raw, limit: int | None) -> np.ndarray:
    """The rows to keep of the test split, ordered so that every prefix is balanced by class.

    A corrupted test split consists of blocks, each of them with the same images. Every block is cut, in the official
    order, to the images that the limit leaves of the clean split, so that both accuracies are about the same images.
    """
    _, labels = raw.splits["test"]
    order = stratified_order(labels[: len(labels) // raw.blocks])[:limit]
    if raw.blocks == 1:
        return order
    starts = np.arange(raw.blocks)[:, None] * (len(labels) // raw.blocks)
    return (starts + np.sort(order)).reshape(-1)


def _take(
    spec: Mapping[str, Any], split: str, pair: tuple[np.ndarray, np.ndarray], rows: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    pixels, labels = pair
    return {
        f"{split}.images": np.ascontiguousarray(images.fit(pixels[rows], size, spec["channels"])),
        f"{split}.labels": labels[rows].astype(np.int64),
        f"{split}.index": rows.astype(np.int64),
    }


def _check_split(spec: Mapping[str, Any], split: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    where = f"dataset {spec['name']}, official {split} split"
    if len(pixels) != len(labels) or len(labels) == 0:
        raise DataError(f"{where}: {len(pixels)} images and {len(labels)} labels")
    if pixels.shape[3] not in (1, spec["channels"]):
        raise DataError(f"{where}: images have {pixels.shape[3]} channels; the description says {spec['channels']}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= spec["num_classes"]:
        raise DataError(f"{where}: labels from {low} to {high}; allowed: 0 to {spec['num_classes'] - 1}")


def _metadata(
    spec: Mapping[str, Any],
    raw: Raw,
    classes: list[str],
    tensors: Mapping[str, np.ndarray],
    parameters: dict[str, Any],
    found: Mapping[str, Any],
) -> dict[str, Any]:
    size = parameters["image_size"]
    augment = spec["augment"]
    return {
        "version": VERSION,
        "dataset": spec["name"],
        "title": spec["title"],
        "classes": classes,
        "channels": spec["channels"],
        "image_size": size,
        "mean": spec["mean"],
        "std": spec["std"],
        # The same fraction of the image at every size.
        "augment": {**augment, "crop_padding": round(augment["crop_padding"] * size / spec["image_size"])},
        "counts": {name.split(".")[0]: len(rows) for name, rows in tensors.items() if name.endswith(".labels")},
        "parameters": parameters,
        "sources": manifest.sources(found),
        **raw.extra,
    }


# -- load ------------------------------------------------------------------
def load(path: Path, splits: Sequence[str] = ("train", "val", "test")) -> Dataset:
    """Load a prepared dataset, or some of its splits, as torch tensors on the CPU.

    Raises:
        DataError: the file is missing, truncated, no prepared dataset, or lacks a split; names the file and the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with: moat prepare")
    metadata, tensors = _read(path, splits)
    keys = ("classes", "mean", "std", "augment", "image_size")
    return Dataset(
        name=metadata["dataset"],
        **{key: metadata[key] for key in keys},
        splits={split: Split(**tensors[split]) for split in splits},
        sha256=hash_once(path),
        metadata=metadata,
    )


def official_indices(split: Split, n: int) -> list[int]:
    """The numbers of the first ``n`` examples in the official split; of the rows, where versions share a number."""
    indices = split.columns["index"][:n].tolist() if "index" in split.columns else list(range(n))
    # Several versions of one image: corruptions.
    return indices if len(set(indices)) == n else list(range(n))


def _read(path: Path, splits: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, "torch.Tensor"]]]:
    """The metadata, and for each split its tensors by name, ``index`` and the like under "columns"."""
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = json.loads((stream.metadata() or {}).get("moat", "null"))
            if not isinstance(metadata, dict) or metadata.get("version") != VERSION:
                raise DataError(f"{path}: not a dataset prepared by this version of moat; run moat prepare again")
            missing = [split for split in splits if split not in metadata["counts"]]
            if missing:
                raise DataError(f"{path}: no split {missing[0]!r}; it has: {', '.join(metadata['counts'])}")
            tensors = {split: {"columns": {}} for split in splits}
            for name in stream.keys():  # noqa: SIM118 - not a dict
                split, _, column = name.partition(".")
                if split in tensors:
                    own = tensors[split] if column in ("images", "labels") else tensors[split]["columns"]
                    own[column] = stream.get_tensor(name)
            for split, held in tensors.items():
                columns = {name: len(column) for name, column in (held | held["columns"]).items() if name != "columns"}
                if len(set(columns.values())) > 1:
                    found = ", ".join(f"{n} {name}" for name, n in sorted(columns.items()))
                    raise DataError(f"{path}: split {split!r} has {found}; run moat prepare again")
            return metadata, tensors
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error
