"""Files that one process at a time works on. The kernel frees a lock when its holder ends, for whatever reason."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moat.base.errors import ConfigError

log = logging.getLogger(__name__)


def lock(file: int, path: Path, *, waiting: str) -> None:
    """Lock an open file, waiting for whoever has it locked, and then saying so once.

    On a file system without locks, goes on without.

    Args:
        waiting: what the other process does, e.g. "another process makes this evaluation".
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("%s (%s); waiting for it", waiting, path)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        log.warning("%s: no locks on this file system (%s)", path, error.strerror)


@contextmanager
def locked(path: Path, *, waiting: str) -> Iterator[None]:
    """Hold the lock of ``path``, an empty file beside it; its folder is created.

    Raises:
        ConfigError: it cannot be created.
    """
    beside = path.with_name(f".{path.name}.lock")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"{beside}: cannot be written here ({error.strerror})") from error
    try:
        lock(file, beside, waiting=waiting)
        yield
    finally:
        os.close(file)
