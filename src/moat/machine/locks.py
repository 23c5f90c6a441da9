"""Lock files shared by the processes of all users, and freed by the kernel when their holder is killed.

Their folder may lie in one that everybody can write, such as /tmp: nothing in it is trusted. What is no regular file
is refused, links are not followed, and no mode is changed but that of what was just made.
"""

import contextlib
import errno
import json
import logging
import os
import shlex
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, MoatError
from moat.base.locks import take, user_name, why

log = logging.getLogger(__name__)

# Seconds after which a process that waits for the mutex says so, and after which it gives up: others hold it for
# milliseconds.
MUTEX_MESSAGE, MUTEX_LIMIT = 5.0, 120.0
# Of a lock file only so many bytes are read.
_OWNER_BYTES = 65536


def shared_folder(environ=os.environ, *, make: bool = True) -> Path:
    """The folder of this machine's locks: ``MOAT_LOCKS``, or a folder that is the same for every user.

    ``make``: create it where it does not exist.
    """
    system = Path("/run/lock")
    writable = system.is_dir() and system.stat().st_mode & stat.S_IWOTH
    path = Path(environ.get("MOAT_LOCKS") or (system if writable else Path("/tmp")) / "moat-gpus")
    return make_folder(path) if make else path


def make_folder(path: Path) -> Path:
    """Create a folder like /tmp: every user may create files in it, and remove only their own.

    Raises:
        ConfigError: it cannot be created or written to, is a link, or can be written by everybody without being
            sticky; says why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = True
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            made = False
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if made:
                os.fchmod(folder, 0o1777)
            mode = os.fstat(folder).st_mode
        finally:
            os.close(folder)
    except OSError as error:
        reason = "a link or a file is in its place" if error.errno in (errno.ELOOP, errno.ENOTDIR) else why(error, path)
        raise ConfigError(f"{path}: no folder for the GPU locks ({reason}); MOAT_LOCKS names one") from error
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"{path}: everybody may remove the GPU locks of others in this folder (mode {stat.S_IMODE(mode):o}, "
            "needed: 1777); MOAT_LOCKS names another"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        owner = user_name(path.stat().st_uid)
        raise ConfigError(
            f"{path}: the folder of the GPU locks, which belongs to {owner}, cannot be written; "
            "MOAT_LOCKS names another"
        )
    return path


def open_file(path: Path, *, create: bool = True) -> int:
    """Open a lock file, whoever owns it, or create it. Child processes do not inherit the file descriptor.

    Raises:
        ConfigError: something else has its name. FileNotFoundError: there is none, and ``create`` is false.
    """
    # Not blocking, which a pipe would.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        while True:
            # Without O_CREAT first: in a sticky folder it is refused for another user's file even if the file exists.
            with contextlib.suppress(*([FileNotFoundError] if create else [])):
                return _regular(path, os.open(path, flags))
            with contextlib.suppress(FileExistsError):
                file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(file, 0o666)
                return file
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "a link" if error.errno == errno.ELOOP else why(error, path)
        raise ConfigError(
            f"{path}: no lock file ({reason}); remove it, or name another folder in MOAT_LOCKS"
        ) from error


def _regular(path: Path, file: int) -> int:
    """An open file, if it is a regular one that no other folder holds, too: its content will be replaced."""
    there = os.fstat(file)
    if stat.S_ISREG(there.st_mode) and there.st_nlink <= 1:
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "not a regular file, or one with a second name", str(path))


def try_lock(file: int, *, shared: bool = False) -> bool:
    """Lock without waiting; False if another process holds the lock."""
    return take(file, shared=shared, wait=False)


@contextlib.contextmanager
def mutex(folder: Path) -> Iterator[None]:
    """Let only one process at a time look at the locks of a folder and change them.

    Raises:
        MoatError: another process, perhaps a stopped one, has held it for :data:`MUTEX_LIMIT` seconds.
    """
    path = folder / "mutex"
    file = open_file(path)
    try:
        started, told = time.monotonic(), False
        while not try_lock(file):
            waited = time.monotonic() - started
            if waited > MUTEX_LIMIT:
                raise MoatError(
                    f"{path}: another process has held this lock for {waited:.0f} s (is it stopped? "
                    f"`fuser {path}` names it); end it, or name another folder in MOAT_LOCKS"
                )
            if waited > MUTEX_MESSAGE and not told:
                log.warning("%s: waiting for another process that holds this lock", path)
                told = True
            time.sleep(0.005)
        yield
    finally:
        os.close(file)


def write_owner(file: int, **more: Any) -> None:
    """Record in a lock file who holds it, for `moat doctor` and for those who wait."""
    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    owner = {"pid": os.getpid(), "user": user_name(os.getuid()), "since": time.time()}
    owner |= {"command": shlex.join(arguments), **more}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(owner).encode(), 0)


def read_owner(file: int) -> dict[str, Any]:
    """What :func:`write_owner` recorded; empty if the file is empty or unreadable."""
    try:
        owner = json.loads(os.pread(file, _OWNER_BYTES, 0))
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}
