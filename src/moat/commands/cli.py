"""The ``moat`` command: one module of :mod:`moat.commands` per subcommand.

A subcommand's module has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments)``. It
imports torch and the like inside ``run``, so that ``moat --help`` answers at once.
"""

import argparse
import contextlib
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence

import moat
from moat.base.errors import MoatError
from moat.pipeline.warm.client import run_warm

SUBCOMMANDS = (
    "doctor", "draw", "evaluate", "fetch", "plan", "prepare", "probe", "pull", "report", "tabulate", "train",
    "verify",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moat", description=moat.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"moat {moat.__version__}")
    parser.add_argument("--project", default=".", metavar="DIR", help="folder that holds config/ (default: this one)")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in SUBCOMMANDS:
        module = importlib.import_module(f"moat.commands.{name}")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's error is one line on stderr and an exit code (see :mod:`moat.base.errors`)."""
    code = run_warm(sys.argv[1:] if argv is None else argv)
    if code is not None:
        return code
    try:
        code = _run(argv)
        # Now, and not when Python ends: here a reader that went away is answered.
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # `moat plan --json | head`: nobody is left to be told. What Python still holds for the reader goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        # What a command holds as long as it runs, e.g. a GPU.
        with contextlib.ExitStack() as arguments.until_end:
            return arguments.run(arguments) or 0
    except MoatError as error:
        print(f"moat {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"moat {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads: another pipe may have broken, and that is no quiet end."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
