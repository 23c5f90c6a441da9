"""Get the results that dvc.lock names; refuse where they are not exactly those; then Snakemake has nothing to do."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from moat.pipeline import dvc_pull


@dataclass(frozen=True)
class Request:
    """``local``: only from this machine's cache."""

    root: Path
    local: bool


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--local", action="store_true", help="only from this machine's cache, as after `git checkout` of another commit"
    )


def request(arguments: Namespace) -> Request:
    return Request(arguments.project or Path("."), arguments.local)


def run(request: Request) -> None:
    dvc_pull.pull(request.root, local=request.local)
    print("All results are those of dvc.lock, and `snakemake` has nothing to do.")
