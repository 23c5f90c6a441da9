"""The ``moat`` command: parses the arguments, imports the one subcommand that was asked for, and runs it."""

import argparse
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import moat
from moat.base.errors import Interrupted, MoatError
from moat.base.signals import exit_on_sigterm
from moat.pipeline.warm.client import run_warm

# One line each, so that `moat --help` imports none of them.
SUBCOMMANDS = {
    "clean": "remove what only saves time: checkpoints and journals of what was begun, caches",
    "doctor": "report what this machine can do: torch, GPUs, data, SLURM, DVC, disk",
    "draw": "draw figures from the evaluations",
    "evaluate": "attack one model with a suite; resumable",
    "fetch": "download a dataset's files and verify them",
    "list": "list methods, attacks, datasets, suites, scales or checks",
    "plan": "show what is done, missing or stale, what the missing costs, and what fits into a budget",
    "prepare": "turn fetched files into one file of tensors",
    "probe": "extract weights, router scores, features or heat maps from one model, for tables and figures",
    "publish": "copy the evidence of a scale to where git keeps it",
    "pull": "get models and results through DVC",
    "report": "write the page with all results",
    "tabulate": "make tables from the evaluations",
    "train": "train one run; resumable",
    "verify": "run the checks: can a model's robust accuracy be trusted?",
}


# Python -OO has no docstrings.
_DESCRIPTION = (moat.__doc__ or "moat").splitlines()[0]


class _Subparser(argparse.ArgumentParser):
    """A subcommand's parser, which imports the subcommand's module only when it is used."""

    def parse_known_args(self, args=None, namespace=None):
        module = importlib.import_module(f"moat.commands.{self.prog.split()[-1]}")
        self.description = module.__doc__
        # Accepted after the command, too; without a default, which would override the one given before it.
        _add_project(self, default=argparse.SUPPRESS)
        module.add_arguments(self)
        self.set_defaults(module=module)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            # The parent would print its own usage.
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moat", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"moat {moat.__version__}")
    _add_project(parser, default=None)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Subparser)
    for name, summary in SUBCOMMANDS.items():
        subparsers.add_parser(name, help=summary, allow_abbrev=False)
    return parser


def _add_project(parser: argparse.ArgumentParser, default) -> None:
    folder = "folder that holds config/ (default: this one; what moat was installed with, where it holds none)"
    parser.add_argument("--project", type=Path, default=default, metavar="DIR", help=folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's error is one line on stderr and an exit code (see :mod:`moat.base.errors`)."""
    # A notebook's backend, which a command inherits, cannot be imported here, and nothing is shown in a window.
    os.environ["MPLBACKEND"] = "agg"
    code = run_warm(sys.argv[1:] if argv is None else argv)
    if code is not None:
        return code
    try:
        code = _run(argv)
        # Here rather than at Python's exit, so that a closed pipe is handled below.
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # `moat plan --json | head`: there is nobody to tell. Python's remaining output is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    module = arguments.module
    resumes = getattr(module, "RESUMES", None)
    if resumes is not None:
        exit_on_sigterm(resumes)
    try:
        return module.run(module.request(arguments)) or 0
    except MoatError as error:
        print(f"moat {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        after = "" if resumes is None else f"; {resumes}"
        print(f"moat {arguments.command}: interrupted{after}", file=sys.stderr)
        return 128 + signal.SIGINT if resumes is None else Interrupted.exit_code


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads: another pipe may have broken, and that is no quiet end."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
