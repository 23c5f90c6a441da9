"""Download a dataset's files, verify them, and list them in a manifest. Resumes where an earlier call stopped."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.commands.options import described
from moat.config.project import Project
from moat.data.fetch import fetch


@dataclass(frozen=True)
class Request:
    """A dataset to download.

    Attributes:
        spec: its description, from config/datasets/.
        into: folder for the files.
        mirror: folder or URL to take them from; None: the official addresses.
    """

    spec: Mapping[str, Any]
    into: Path
    mirror: str | None


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a name from config/datasets/ (`moat list datasets`)")
    parser.add_argument("--into", required=True, type=Path, metavar="DIR", help="folder for the files")
    parser.add_argument(
        "--mirror",
        metavar="URL_OR_DIR",
        help="folder or URL with the files and SHA256SUMS (default: $MOAT_MIRROR, then data.mirror in "
        "config/config.yaml, then the official addresses)",
    )


def request(arguments: Namespace) -> Request:
    project = Project(arguments.project)
    spec = described(project, arguments.dataset)
    return Request(spec, arguments.into, chosen_mirror(arguments.mirror, project))


def run(request: Request) -> None:
    print(fetch(request.spec, request.into, mirror=request.mirror))


def chosen_mirror(option: str | None, project: Project) -> str | None:
    """The mirror from the option, $MOAT_MIRROR or config/config.yaml, in this order; None: the official addresses.

    A relative path is relative to the working directory in the first two, to the project's configuration in the third.
    """
    if given := option or os.environ.get("MOAT_MIRROR"):
        return given
    configured = (project.config().get("data") or {}).get("mirror")
    return configured if configured is None or "://" in configured else str(project.source / configured)
