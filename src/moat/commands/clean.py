"""Remove what only saves time: the folder work/, with the checkpoints and journals of what was begun, and caches.

Results stay. What was interrupted starts anew.
"""

import os
import shutil
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from moat.base.errors import ConfigError, unknown_name
from moat.base.locks import take, why
from moat.base.remembered import FOLDER
from moat.config import paths
from moat.config.project import Project


@dataclass(frozen=True)
class Request:
    """The folder to remove."""

    folder: Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--scale", metavar="X", help="only what belongs to this scale's results")


def request(arguments: Namespace) -> Request:
    if arguments.scale is None:
        return Request(FOLDER)
    known = Project(arguments.project).names("scales")
    if arguments.scale not in known:
        raise ConfigError(unknown_name(arguments.scale, known, what="scale"))
    return Request(FOLDER / paths.results(arguments.scale))


def run(request: Request) -> None:
    """
    Raises:
        ConfigError: a process works there; names its file. Nothing is removed.
    """
    files = [path for path in sorted(request.folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    for path in files:
        try:
            locked = _is_locked(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be removed ({why(error, path)})") from error
        if locked:
            raise ConfigError(f"{path}: another process is at work there; wait for it, or end it first")
    size = sum(path.stat().st_size for path in files)
    if request.folder.exists():
        try:
            shutil.rmtree(request.folder)
        except OSError as error:
            where = Path(error.filename or request.folder)
            raise ConfigError(f"{where}: cannot be removed ({why(error, where)})") from error
    print(f"{request.folder}: {len(files)} files, {size / 10**6:.1f} MB removed")


def _is_locked(path: Path) -> bool:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not take(file, wait=False)
    finally:
        os.close(file)
