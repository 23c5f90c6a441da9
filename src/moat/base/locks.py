"""Advisory locks on files, also where the file system knows none: there, one warning, and work goes on.

A lock belongs to the open file. The kernel releases it when the last process that has the file open ends, for whatever
reason. Some network file systems (Lustre without ``-o flock``, NFS without its lock daemon) have no such locks.
"""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from moat.base.errors import ConfigError

log = logging.getLogger(__name__)

# What flock says where there are no locks.
_NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def take(file: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file; False if another process holds the lock and ``wait`` is false.

    True also where the file system has no locks, of which the log warns once a process.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise
        warn_without_locks(error.strerror)
    return True


def missing(folder: Path) -> str | None:
    """Why the file system of a folder has no locks; None if it has. A folder's own entry is locked for a moment."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        return error.strerror
    finally:
        os.close(file)
    return None


@functools.cache
def warn_without_locks(reason: str) -> None:
    log.warning(
        "no locks on this file system (%s): two processes may do the same work at once, or share a GPU; start no "
        "second one in this folder, and set MOAT_LOCKS to a folder on a local disk for the locks of the GPUs",
        reason,
    )


def lock(file: int, path: Path, *, waiting: str) -> None:
    """Lock an open file, waiting for whoever has it locked, and then saying so once.

    Args:
        waiting: what the other process does, e.g. "another process makes this evaluation".
    """
    if not take(file, wait=False):
        log.warning("%s (%s); waiting for it", waiting, path)
        take(file)


def why(error: OSError, path: Path) -> str:
    """Why a lock cannot be had, with the owner of the file or its folder if that is another user."""
    reason = error.strerror or str(error)
    there = next(found for found in (path, *path.absolute().parents) if os.path.lexists(found))
    owner = os.lstat(there).st_uid
    # Some file systems lock only files that are open for writing, which those of other users may not be.
    if owner == os.geteuid() or error.errno not in (errno.EACCES, errno.EPERM, errno.EBADF):
        return reason
    return f"{reason}: {there} belongs to {user_name(owner)}"


def user_name(number: int) -> str:
    """The name of a user, or the number where the system knows none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@contextlib.contextmanager
def only_one(path: Path, *, waiting: str) -> Iterator[None]:
    """Hold the lock file ``path``, made where it does not exist; see :func:`lock`.

    Raises:
        OSError: it cannot be opened, made or locked; ``strerror`` is :func:`why`.
    """
    file = None
    try:
        file = _open(path)
        lock(file, path, waiting=waiting)
    except OSError as error:
        if file is not None:
            os.close(file)
        raise OSError(error.errno, why(error, path), str(path)) from error
    try:
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(path: Path, *, waiting: str) -> Iterator[None]:
    """Hold the lock of ``path``, an empty file beside it; its folder is created.

    Raises:
        ConfigError: it cannot be created.
    """
    beside = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_one(beside, waiting=waiting))
        except OSError as error:
            raise ConfigError(f"{beside}: cannot be written here ({error.strerror})") from error
        yield


def _open(path: Path) -> int:
    """Open a lock file, or create it; another user's that may be read is enough, but for NFS."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    for access in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, flags | access)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
