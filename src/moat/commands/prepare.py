"""Read a dataset's fetched files and write one file of tensors: images, labels, splits, class names."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from moat.config.project import Project

HELP = "turn fetched files into one file of tensors"
PARAMETERS = ("image_size", "train_limit", "test_limit", "validation")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a file's name in config/datasets/, without .yaml")
    parser.add_argument("--from", required=True, type=Path, metavar="DIR", dest="source", help="what moat fetch filled")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--scale", metavar="X", help="take what is not given below from config/scales/X.yaml")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels a side (default: as published)")
    parser.add_argument("--train-limit", type=int, metavar="N", help="at most N training images (default: all)")
    parser.add_argument("--test-limit", type=int, metavar="N", help="at most N test images (default: all)")
    parser.add_argument("--validation", type=int, metavar="N", help="training images held out (default: the dataset's)")


def run(arguments: Namespace) -> int:
    from moat.commands.fetch import described
    from moat.data.datasets import prepare

    project = Project(Path(arguments.project))
    spec = described(project, arguments.dataset)
    scale = project.scale(arguments.scale).get("data") or {} if arguments.scale else {}
    given = {name: getattr(arguments, name) for name in PARAMETERS}
    parameters = {name: scale.get(name) if value is None else value for name, value in given.items()}
    prepare(spec, arguments.source, arguments.out, **parameters)
    print(arguments.out)
    return 0
