"""First come, first served: the queue of those who wait for a GPU.

A ticket is a locked file with a number. Whoever waits sleeps on the lock of the ticket before its own, which the
kernel frees when that one is served or killed: nobody is overtaken, and nobody polls but the first.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from moat.machine import locks


class Ticket:
    """A place in the queue, held until :meth:`leave`. Made, and asked, inside :func:`moat.machine.locks.gate`.

    Args:
        names: the GPUs that it waits for. Who waits for others is not in its way.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self.names = folder, frozenset(names)
        numbers = [_number(path) for path in folder.glob("ticket.*")]
        self.path = folder / f"ticket.{max(numbers, default=0) + 1}"
        self.file = locks.open_file(self.path)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        locks.write_owner(self.file, gpus=sorted(self.names))

    def before(self) -> list[int]:
        """Open files of the tickets that are served before this one, the nearest first. The caller closes them."""
        return waiting(self.folder, self.names, below=_number(self.path))

    def leave(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.file)


def waiting(folder: Path, names: Iterable[str], below: float = float("inf")) -> list[int]:
    """Open files of living tickets for any of these GPUs, the newest first. The caller closes them."""
    files = []
    tickets = [path for path in folder.glob("ticket.*") if _number(path) < below]
    for path in sorted(tickets, key=_number, reverse=True):
        # Whoever is served leaves without passing the gate.
        with contextlib.suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if locks.try_lock(file, shared=True):
                # Its holder is gone. (Another user's file stays; it costs a look.)
                os.close(file)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            elif frozenset(names).isdisjoint(locks.read_owner(file).get("gpus", names)):
                os.close(file)
            else:
                files.append(file)
    return files


def sleep_until_free(file: int) -> None:
    """Wait until the ticket behind an open file is served, or its holder is gone."""
    fcntl.flock(file, fcntl.LOCK_SH)


def _number(path: Path) -> int:
    suffix = path.name.partition(".")[2]
    return int(suffix) if suffix.isdecimal() else 0
