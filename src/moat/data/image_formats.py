"""Readers of datasets whose images are JPEG, PNG or other image files, in a folder or an archive."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from moat.base.errors import DataError
from moat.base.progress import progress
from moat.data import archives, images
from moat.data.raw import Pair, Raw, Spec, only, require
from moat.data.splits import stratified_order

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def tiny_imagenet(spec: Spec, files: Mapping[str, Path], size: int) -> Raw:
    """Tiny ImageNet: train/<class>/images/*, and as test split val/images/* with val/val_annotations.txt."""
    path = only(spec, files)
    content = {
        name.split("/", 1)[-1]: data
        for name, data in archives.read_members(
            path, lambda name: _is_image(name) or name.endswith(("/wnids.txt", "/val/val_annotations.txt"))
        ).items()
    }
    require(path, {"wnids.txt", "val/val_annotations.txt"}, content)
    classes = sorted(content.pop("wnids.txt").decode().split())
    lines = content.pop("val/val_annotations.txt").decode().splitlines()
    annotated = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    train, test = [], []
    for name in sorted(content):
        parts = name.split("/")
        if parts[0] == "train" and len(parts) == 4:
            train.append((name, parts[1]))
        elif parts[0] == "val":
            if parts[-1] not in annotated:
                raise DataError(f"{path}: member val/images/{parts[-1]} has no class in val/val_annotations.txt")
            test.append((name, annotated[parts[-1]]))
    pairs = {"train": train, "test": test}
    return Raw({split: _decode_all(path, content, rows, classes, spec, size) for split, rows in pairs.items()}, classes)


def image_folder(spec: Spec, files: Mapping[str, Path], size: int) -> Raw:
    """Images <split>/<class>/* in a folder, tar or zip, at any depth. Labels number the classes, sorted by name.

    In a folder whose description names no layout, and that has no folder of a split, they may be <class>/*: then about
    a fifth of each class is the test split, the same always.
    """
    path = only(spec, files)
    layout = {split: spec.get("layout", {}).get(split, split) for split in ("train", "test")}
    if path.is_dir() and "layout" not in spec and not any(has_classes(path / split) for split in layout):
        return _unsplit(path, spec, size)
    content = archives.read_members(path, lambda name: _is_image(name) and name.split("/")[-3:-2] != [])
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in layout}
    prefixes = set()
    for name in sorted(content):
        *prefix, folder, label, _ = name.split("/")
        for split in (split for split in layout if layout[split] == folder):
            rows[split].append((name, label))
            prefixes.add("/".join(prefix))
    for split, found in rows.items():
        if not found:
            raise DataError(f"{path}: no images in a folder {layout[split]}/<class>/ (the {split} split)")
    if len(prefixes) > 1:
        raise DataError(f"{path}: splits in several folders: {', '.join(sorted(map(repr, prefixes)))}; expected one")
    classes = sorted({label for _, label in rows["train"]})
    return Raw({split: _decode_all(path, content, rows[split], classes, spec, size) for split in rows}, classes)


def has_classes(folder: Path) -> bool:
    """Whether a folder holds folders, as that of a split does, and not the images of a class."""
    return folder.is_dir() and any(each.is_dir() for each in folder.iterdir())


def _unsplit(path: Path, spec: Spec, size: int) -> Raw:
    content = archives.read_members(path, _is_image)
    rows = [(name, name.split("/")[0]) for name in sorted(content) if name.count("/") == 1]
    if len(rows) < len(content) or not rows:
        other = next((name for name in sorted(content) if name.count("/") != 1), None)
        found = f"{other} is in neither" if other else "there are no images"
        raise DataError(f"{path}: needed: <class>/*, or train/<class>/* and test/<class>/*; {found}")
    classes = sorted({label for _, label in rows})
    labels = np.array([classes.index(label) for _, label in rows])
    for number, label in enumerate(classes):
        if (count := int((labels == number).sum())) < 2:
            raise DataError(f"{path}: {count} image of class {label!r}; needed: two or more, to train and to test on")
    order = stratified_order(labels)
    # A fifth of every class, but at least one image.
    of_classes = [order[labels[order] == number] for number in range(len(classes))]
    tested = {int(row) for of_class in of_classes for row in of_class[: max(1, len(of_class) // 5)]}
    parts = {"train": [row for row in range(len(rows)) if row not in tested], "test": sorted(tested)}
    decoded = {
        split: _decode_all(path, content, [rows[row] for row in part], classes, spec, size)
        for split, part in parts.items()
    }
    return Raw(decoded, classes)


def sizes(folder: Path) -> set[tuple[int, int]]:
    """Width and height of the images in a folder, each once.

    Raises:
        DataError: an image that cannot be read.
    """
    return {images.size(path.read_bytes(), where=name) for name, path in archives.files(folder) if _is_image(name)}


def _decode_all(
    path: Path,
    content: dict[str, bytes],
    rows: list[tuple[str, str]],
    classes: list[str],
    spec: Spec,
    size: int,
) -> Pair:
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = sorted({label for _, label in rows} - set(numbers))
    if unknown:
        member = next(name for name, label in rows if label == unknown[0])
        raise DataError(f"{path}: member {member}: class {unknown[0]!r} is not among the training classes")
    pixels = np.empty((len(rows), size, size, spec["channels"]), np.uint8)
    for index, (name, _) in enumerate(progress(rows, description=f"decoding {path.name}", unit="images")):
        pixels[index] = images.decode(content.pop(name), size, spec["channels"], where=f"{path}: member {name}")
    return pixels, np.array([numbers[label] for _, label in rows])


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
