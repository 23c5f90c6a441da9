"""The queue for GPUs: first come, first served.

A ticket is a locked file with a number. A waiting process sleeps on the lock of the ticket ahead of its own, which the
kernel releases once that process is served or killed: nobody is overtaken, and only the first in line polls.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from moat.base.errors import ConfigError
from moat.base.locks import take
from moat.machine import locks


class Ticket:
    """A place in the queue, held until :meth:`leave`. Create and query it inside :func:`moat.machine.locks.mutex`.

    Args:
        names: the GPUs that it waits for. Tickets for disjoint sets of GPUs ignore each other.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self.names = folder, frozenset(names)
        numbers = [_number(path) for path in folder.glob("ticket.*")]
        self.path = folder / f"ticket.{max(numbers, default=0) + 1}"
        self.file = locks.open_file(self.path)
        take(self.file)
        locks.write_owner(self.file, gpus=sorted(self.names))

    def ahead(self) -> list[int]:
        """Open files of the tickets to be served before this one, the nearest first. The caller closes them."""
        return waiting(self.folder, self.names, below=_number(self.path))

    def leave(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.file)


def waiting(folder: Path, names: Iterable[str], below: float = float("inf")) -> list[int]:
    """Open files of the held tickets for any of these GPUs, the newest first. The caller closes them."""
    files = []
    tickets = [path for path in folder.glob("ticket.*") if _number(path) < below]
    for path in sorted(tickets, key=_number, reverse=True):
        # A process that has been served removes its ticket without taking the mutex. What is no lock file is no ticket.
        with contextlib.suppress(FileNotFoundError, ConfigError):
            file = locks.open_file(path, create=False)
            if locks.try_lock(file, shared=True):
                # Its holder is gone. (Another user's file cannot be removed, and costs this check every time.)
                os.close(file)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            elif frozenset(names).isdisjoint(_wanted(file, names)):
                os.close(file)
            else:
                files.append(file)
    return files


def sleep_until_free(file: int) -> None:
    """Block until the holder of the ticket behind an open file has been served, or has died."""
    take(file, shared=True)


def _wanted(file: int, names: Iterable[str]) -> Iterable[str]:
    """The GPUs that a ticket waits for; all where it does not say."""
    gpus = locks.read_owner(file).get("gpus")
    return [name for name in gpus if isinstance(name, str)] if isinstance(gpus, list) else names


def _number(path: Path) -> int:
    suffix = path.name.partition(".")[2]
    # Longer than any that was counted up to: somebody else's file.
    return int(suffix) if suffix.isdecimal() and len(suffix) < 19 else 0
