"""Read a dataset's files, or a folder of images, and write one file of tensors: images, labels, splits, class names."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moat.base.errors import ConfigError
from moat.base.files import atomic_path
from moat.commands.options import DATA_PARAMETERS, PREPARED, data_parameters, described
from moat.config import paths
from moat.config.project import Project
from moat.data.fetch import fetch


@dataclass(frozen=True)
class Request:
    """A dataset to prepare.

    Attributes:
        spec: its description, from config/datasets/.
        source: folder that ``moat fetch`` filled.
        out: the file to write.
        parameters: those of :data:`moat.commands.options.DATA_PARAMETERS`; None: as published.
    """

    spec: Mapping[str, Any]
    source: Path
    out: Path
    parameters: Mapping[str, int | None]


@dataclass(frozen=True)
class FolderRequest:
    """A folder of images to describe, once, and to prepare.

    Attributes:
        folder: the images.
        written: the folder as its description names it.
        description: the file in config/datasets/ to write; None: no project to write it to.
        spec: what is described there already; None: nothing yet.
        source: where the manifest goes that ``moat fetch`` would write.
        out, parameters: as of :class:`Request`.
    """

    folder: Path
    written: str
    description: Path | None
    spec: Mapping[str, Any] | None
    source: Path
    out: Path
    parameters: Mapping[str, int | None]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="a name from config/datasets/ (`moat list datasets`), or a folder of images, <class>/* or "
        "train/<class>/* and test/<class>/*: that is described in config/datasets/, too (docs/your-own-images.md)",
    )
    parser.add_argument("--from", type=Path, metavar="DIR", dest="source", help="of a name: what moat fetch filled")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write; folders are made"
    )
    parser.add_argument("--scale", metavar="X", help="take what is not given below from config/scales/X.yaml")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels a side (default: as published)")
    parser.add_argument("--train-limit", type=int, metavar="N", help="at most N training images (default: all)")
    parser.add_argument("--test-limit", type=int, metavar="N", help="at most N test images (default: all)")
    parser.add_argument("--validation", type=int, metavar="N", help="training images held out (default: the dataset's)")


def request(arguments: Namespace) -> Request | FolderRequest:
    project = Project(arguments.project)
    given = {name: value for name in DATA_PARAMETERS if (value := getattr(arguments, name)) is not None}
    parameters = data_parameters(project, arguments.scale) | given
    known = arguments.dataset in project.names("datasets")
    if Path(arguments.dataset).is_dir() and not (known and arguments.source):
        return _of_folder(project, arguments, parameters)
    spec = described(project, arguments.dataset)
    if arguments.source is None:
        raise ConfigError(f"--from DIR: where did `moat fetch {arguments.dataset} --into DIR` put the files?")
    return Request(spec, arguments.source, arguments.out, parameters)


def _of_folder(project: Project, arguments: Namespace, parameters: Mapping[str, int | None]) -> FolderRequest:
    if arguments.source is not None:
        raise ConfigError(f"--from {arguments.source}: {arguments.dataset} is a folder, and is read itself")
    from moat.data.own_folder import name_of  # Here, because it imports numpy and Pillow.

    folder, root = Path(arguments.dataset).resolve(), project.root.resolve()
    name, spec, description, source = name_of(folder), None, None, PREPARED / name_of(folder)
    if project.is_checkout:
        description = root / "config" / "datasets" / f"{name}.yaml"
        source = project.root / Path(paths.manifest(project.config()["data"]["resources"], name)).parent
    if name in project.names("datasets"):
        spec = described(project, name)
        if spec.get("folder") != str(folder):
            raise ConfigError(f"{arguments.dataset}: config/datasets/ has another {name!r}; rename the folder")
    written = str(folder.relative_to(root) if folder.is_relative_to(root) else folder)
    return FolderRequest(folder, written, description, spec, source, arguments.out, parameters)


def run(request: Request | FolderRequest) -> None:
    # Here, because reading images imports numpy, Pillow and torch.
    from moat.data.datasets import load, prepare
    from moat.data.unordered import unordered_digest

    spec = _described_folder(request) if isinstance(request, FolderRequest) else request.spec
    prepare(spec, request.source, request.out, **request.parameters)
    print(request.out)
    there = load(request.out, splits=()).metadata["counts"]
    for together in (("train", "val"), ("test",)):
        names = [name for name in together if there.get(name)]
        if names:
            splits = load(request.out, splits=names).splits.values()
            said = f"{' and '.join(names)}: {sum(there[name] for name in names)} images, in any order"
            print(f"{said} {unordered_digest(splits)}")


def _described_folder(request: FolderRequest) -> Mapping[str, Any]:
    """The folder's description, which is written where there is none, and its manifest."""
    from moat.data.own_folder import describe

    spec = request.spec
    if spec is None:
        spec = describe(request.folder, image_size=request.parameters["image_size"])
        if request.description is not None:
            with atomic_path(request.description) as temporary:
                temporary.write_text(_HEAD + yaml.safe_dump({**spec, "folder": request.written}, sort_keys=False))
            print(f"{request.description}: described, as data set {spec['name']!r}")
    fetch(spec, request.source)
    return spec


_HEAD = """\
# Written by moat prepare from what is in the folder; yours to change (config/README.md has all keys). mean and std are
# of the training images. Training mirrors images (augment: flip): wrong where left and right differ, as in digits.
"""
