"""The readers of file formats. A dataset's YAML selects its reader with ``format:``.

A reader takes the dataset's description, the verified files and the image size, and returns :class:`Raw`. To add a
format, write one function with the decorator ``@reader``. The readers of encoded images are in
:mod:`moat.data.image_formats`.
"""

import gzip
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from moat.base.errors import DataError
from moat.data import archives, image_formats, npy, pickles
from moat.data.raw import Pair, Raw, Spec, listed, only, require, role
from moat.data.splits import stratified_order

Reader = Callable[[Spec, Mapping[str, Path], int], Raw]
READERS: dict[str, Reader] = {}


def reader(function: Reader) -> Reader:
    """Register a reader under its function's name."""
    READERS[function.__name__] = function
    return function


reader(image_formats.image_folder)
reader(image_formats.tiny_imagenet)


@reader
def cifar_pickle(spec: Spec, files: Mapping[str, Path], size: int) -> Raw:
    """CIFAR-10 and CIFAR-100 for Python: a tar of pickled dicts, whose rows are 3 planes (red first) of 1,024 bytes."""
    path, layout = only(spec, files), spec["layout"]
    wanted = {*listed(layout["train"]), *listed(layout["test"]), layout["names_member"]}
    content = {
        PurePosixPath(name).name: data
        for name, data in archives.read_members(path, lambda name: PurePosixPath(name).name in wanted).items()
    }
    require(path, wanted, content)
    batches = {name: pickles.load(data, where=f"{path}: member {name}") for name, data in content.items()}
    splits = {
        split: _cifar_split(path, [(name, batches[name]) for name in listed(layout[split])], layout["labels"])
        for split in ("train", "test")
    }
    names = batches[layout["names_member"]].get(layout["names_key"])
    if not isinstance(names, list):
        raise DataError(f"{path}: member {layout['names_member']}: no list {layout['names_key']!r} of class names")
    return Raw(splits, [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names])


def _cifar_split(path: Path, batches: list[tuple[str, dict[str, Any]]], labels_key: str) -> Pair:
    rows, labels = [], []
    for name, batch in batches:
        data, numbers = batch.get("data"), batch.get(labels_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise DataError(f"{path}: member {name}: no array 'data' of 3,072 bytes a row")
        whole = isinstance(numbers, list) and len(numbers) == len(data) and all(type(n) is int for n in numbers)
        if not whole:
            raise DataError(f"{path}: member {name}: no list {labels_key!r} with a label for each of {len(data)} rows")
        rows.append(data)
        labels += numbers
    pixels = np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.asarray(labels)


@reader
def svhn_mat(spec: Spec, files: Mapping[str, Path], size: int) -> Raw:
    """SVHN's cropped digits: MATLAB files with X (32, 32, 3, N) and y (N, 1), where 10 is the label of the digit 0."""
    return Raw({split: _read_mat(role(spec, files, split)) for split in ("train", "test")})


def _read_mat(path: Path) -> Pair:
    import scipy.io  # Here, because it takes half a second and only SVHN needs it.

    most = archives.unpacked_limit(path)
    try:
        declared = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        # Of up to eight bytes each.
        if any(math.prod(declared.get(name, ())) > most // 8 for name in ("X", "y")):
            raise ValueError(f"X {declared.get('X')} and y {declared.get('y')} hold more than {most // 8} numbers")
        content = scipy.io.loadmat(path, variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].reshape(-1)
    except KeyError as error:
        raise DataError(f"{path}: no variable {error} in this MATLAB file") from error
    # On corrupt content loadmat raises almost any exception.
    except Exception as error:
        raise DataError(f"{path}: not a whole MATLAB 5 file ({error})") from error
    if pixels.ndim != 4 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(f"{path}: X is {pixels.dtype} {pixels.shape}; expected uint8 (32, 32, 3, N)")
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), np.where(labels == 10, 0, labels)


@reader
def idx(spec: Spec, files: Mapping[str, Path], size: int) -> Raw:
    """MNIST: gzipped IDX files, with images and labels in separate files."""
    splits = {}
    for split in ("train", "test"):
        pixels = _read_idx(role(spec, files, f"{split}-images"), dimensions=3)
        splits[split] = pixels[..., None], _read_idx(role(spec, files, f"{split}-labels"), dimensions=1)
    return Raw(splits)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX array: bytes 0, 0, 8 (the type "unsigned byte"), number of dimensions; big-endian sizes; the data."""
    start, most = 4 + 4 * dimensions, archives.unpacked_limit(path)
    try:
        with gzip.open(path) as stream:
            header = stream.read(start)
            if len(header) < start or header[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(f"{path}: not an IDX file of unsigned bytes with {dimensions} dimension(s)")
            shape = np.frombuffer(header, ">u4", dimensions, offset=4).tolist()
            size = math.prod(shape)
            # One byte more than there may be tells whether that is all.
            content = stream.read(min(size, most) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error
    if size == 0:
        raise DataError(f"{path}: its header says {' x '.join(map(str, shape))}, which is no data")
    if len(content) != size:
        held = len(content) if len(content) < min(size, most) else f"more than {len(content) - 1}"
        raise DataError(f"{path}: holds {held} bytes of data where its header says {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)


@reader
def cifar_c(spec: Spec, files: Mapping[str, Path], size: int) -> Raw:
    """CIFAR-10-C: a tar with labels.npy and files <corruption>.npy, each of five equal blocks, one per severity."""
    path = only(spec, files)
    arrays = {
        PurePosixPath(name).stem: npy.read(read(), where=f"{path}: member {name}")
        for name, read in archives.members(path)
        if name.endswith(".npy")
    }
    require(path, {"labels"}, arrays)
    labels = arrays.pop("labels")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % 5:
        raise DataError(f"{path}: member labels.npy is {labels.dtype} {labels.shape}; expected five blocks of labels")
    if (labels.reshape(5, -1) != labels[: len(labels) // 5]).any():
        raise DataError(f"{path}: member labels.npy: its five blocks, one per severity, differ")
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 4 or len(array) != len(labels) or len(array) % 5:
            raise DataError(
                f"{path}: member {name}.npy is {array.dtype} {array.shape}; expected uint8 images, "
                f"five blocks, {len(labels)} rows as in labels.npy"
            )
    if not arrays:
        raise DataError(f"{path}: no member <corruption>.npy")
    names = sorted(arrays)
    # Move one array at a time: the official files have 2.9 GB.
    pixels = np.empty((len(names), *arrays[names[0]].shape), np.uint8)
    for index, name in enumerate(names):
        pixels[index] = arrays.pop(name)
    columns = {
        "corruption": np.repeat(np.arange(len(names)), len(labels)),
        "severity": np.tile(np.repeat(np.arange(1, 6), len(labels) // 5), len(names)),
    }
    test = pixels.reshape(-1, *pixels.shape[2:]), np.tile(labels, len(names))
    return Raw({"test": test}, None, columns, {"corruptions": names}, blocks=5 * len(names))


@reader
def digits(spec: Spec, files: Mapping[str, Path], size: int) -> Raw:
    """scikit-learn's digits, grey levels 0..16 scaled to 0..255; about a fifth of each class is the test split."""
    from sklearn.datasets import load_digits  # Here, because it takes two seconds and only this reader needs it.

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    order = stratified_order(bunch.target, seed=0)
    kept = int(len(order) * 0.8)
    parts = {"train": np.sort(order[:kept]), "test": np.sort(order[kept:])}
    return Raw({split: (pixels[rows], bunch.target[rows]) for split, rows in parts.items()})
