"""Read a dataset's fetched files and write one file of tensors: images, labels, splits, class names."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.commands.options import DATA_PARAMETERS, data_parameters, described
from moat.config.project import Project


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


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a name from config/datasets/ (`moat list datasets`)")
    parser.add_argument("--from", required=True, type=Path, metavar="DIR", dest="source", help="what moat fetch filled")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write; folders are made"
    )
    parser.add_argument("--scale", metavar="X", help="take what is not given below from config/scales/X.yaml")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels a side (default: as published)")
    parser.add_argument("--train-limit", type=int, metavar="N", help="at most N training images (default: all)")
    parser.add_argument("--test-limit", type=int, metavar="N", help="at most N test images (default: all)")
    parser.add_argument("--validation", type=int, metavar="N", help="training images held out (default: the dataset's)")


def request(arguments: Namespace) -> Request:
    project = Project(arguments.project)
    spec = described(project, arguments.dataset)
    given = {name: value for name in DATA_PARAMETERS if (value := getattr(arguments, name)) is not None}
    return Request(spec, arguments.source, arguments.out, data_parameters(project, arguments.scale) | given)


def run(request: Request) -> None:
    # Here, because reading images imports numpy, Pillow and torch.
    from moat.data.datasets import load, prepare
    from moat.data.unordered import unordered_digest

    prepare(request.spec, request.source, request.out, **request.parameters)
    print(request.out)
    there = load(request.out, splits=()).metadata["counts"]
    for together in (("train", "val"), ("test",)):
        names = [name for name in together if there.get(name)]
        if names:
            splits = load(request.out, splits=names).splits.values()
            said = f"{' and '.join(names)}: {sum(there[name] for name in names)} images, in any order"
            print(f"{said} {unordered_digest(splits)}")
