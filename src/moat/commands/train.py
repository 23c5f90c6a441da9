"""Train one run, or continue it: killed at any time, the same command ends with the same weights."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, DataError
from moat.base.files import read_json
from moat.commands.options import in_work
from moat.config import paths
from moat.config.project import Project
from moat.config.recipes import deviations, digest, resolve_content, resolve_run
from moat.machine import devices

log = logging.getLogger(__name__)

RESUMES = "what was trained so far is saved; the same command continues"


@dataclass(frozen=True)
class Request:
    """A training.

    Attributes:
        resolved: the run, as :func:`moat.config.recipes.resolve_run` gives it.
        deviations: of the run from its sources, to be recorded with it.
        data: the prepared dataset.
        out: where the run's files go; ``work``: where checkpoints are kept until then.
        initialize_from: name in the recipe -> folder of the finished run that the training starts from.
        evaluation: the scale's limit and batch size, recorded as the defaults of later evaluations.
        data_digest: of what of the data set changes numbers.
        root: the project's folder.
    """

    resolved: Mapping[str, Any]
    deviations: Mapping[str, str]
    data: Path
    out: Path
    work: Path
    initialize_from: Mapping[str, Path]
    evaluation: Mapping[str, Any]
    data_digest: str
    root: Path
    device: str
    threads: int


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="`moat list datasets` has the names")
    parser.add_argument("--arch", required=True, help="a net: resnet18, preact-resnet18, wrn-28-10, vgg19, …")
    parser.add_argument("--method", required=True, help="`moat list methods` has the names")
    parser.add_argument("--seed", required=True, type=int, help="0 or more")
    parser.add_argument("--scale", required=True, help="`moat list scales` has the names")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the run's files go; it is made")
    parser.add_argument("--data", type=Path, metavar="FILE", help="prepared data (default: results/<scale>/data/…)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="checkpoints (default: work/ and the path of --out)")
    parser.add_argument(
        "--initialize-from",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a finished run that the recipe starts from, by its name in the recipe's initialize_from; once for each",
    )
    devices.add_arguments(parser)


def request(arguments: Namespace) -> Request:
    project = Project(arguments.project)
    project.dataset(arguments.dataset)
    if arguments.seed < 0:
        raise ConfigError(f"--seed {arguments.seed}: allowed: 0 or more")
    named = {key: getattr(arguments, key) for key in ("dataset", "arch", "method", "seed")}
    resolved = resolve_run(project, arguments.scale, **named)
    return Request(
        resolved=resolved,
        deviations=deviations(project, arguments.scale, dataset=arguments.dataset, method=arguments.method),
        data=arguments.data or project.root / paths.prepared(arguments.scale, arguments.dataset),
        out=arguments.out,
        work=arguments.work or in_work(arguments.out),
        initialize_from=_initialize_from(arguments.initialize_from, resolved["recipe"]),
        evaluation=project.scale(arguments.scale)["evaluation"],
        data_digest=digest(resolve_content(project, arguments.dataset)),
        root=project.root,
        device=arguments.device,
        threads=arguments.threads,
    )


def _initialize_from(options: list[str], recipe: Mapping[str, Any]) -> dict[str, Path]:
    folders = {}
    for item in options:
        name, separator, folder = item.partition("=")
        if not separator:
            raise ConfigError(f"--initialize-from {item}: write NAME=DIR")
        folders[name] = Path(folder)
    wanted = {run["name"] for run in recipe.get("initialize_from", [])}
    if set(folders) != wanted:
        given, needed = (", ".join(sorted(names)) or "none" for names in (folders, wanted))
        how = "".join(f" --initialize-from {name}=DIR" for name in sorted(wanted))
        raise ConfigError(
            f"--initialize-from: given {given}; the recipe starts from {needed}{f'; add{how}' if how else ''}"
        )
    return folders


def run(request: Request) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with devices.use(request.device, request.threads) as device:
        _forget_unreadable(request.work)

        # Only now, because this imports torch.
        from moat.training.runs import Run

        _check_extra_images(request)
        training = Run(
            resolved=request.resolved,
            deviations=request.deviations,
            data=request.data,
            out=request.out,
            work=request.work,
            initialize_from=request.initialize_from,
            evaluation=request.evaluation,
            data_digest=request.data_digest,
            device=device,
            root=request.root,
        )
        training.train(on_epoch=_print_row)


def _check_extra_images(request: Request) -> None:
    """Refuse an archive whose headers ask for more memory than it has data. What is missing the training itself says.

    Raises:
        DataError: see :func:`moat.data.npy.check_archive`.
    """
    from moat.data import npy

    extra = request.resolved["recipe"].get("extra_images")
    path = None if extra is None else request.root / extra["file"]
    if path is not None and path.suffix == ".npz" and path.is_file():
        npy.check_archive(path, ("image", "label"))


def _forget_unreadable(work: Path) -> None:
    """Remove records of finished runs that are not JSON: nothing vouches for the files kept with them.

    A run.json that was truncated in place takes its kept copy with it, which is a hard link.
    """
    for record in sorted(work.glob("*/finished/run.json")):
        try:
            read_json(record)
        except DataError as error:
            log.warning("%s; forgotten, and trained again", error)
            record.unlink(missing_ok=True)


def _print_row(row: Mapping[str, Any]) -> None:
    numbers = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
    print(f"epoch {row['epoch']}: {numbers}", flush=True)
