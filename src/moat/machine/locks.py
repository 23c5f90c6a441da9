"""Lock files shared by the processes of all users, and freed by the kernel when their holder is killed.

An advisory ``flock`` belongs to the open file: the kernel releases it when the last process that has the file open
ends, for whatever reason.
"""

import contextlib
import fcntl
import json
import os
import pwd
import shlex
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError


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
        ConfigError: it cannot be created or written to; says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o1777)
    except OSError as error:
        raise ConfigError(f"{path}: no folder for the GPU locks ({error.strerror}); MOAT_LOCKS names one") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: the folder of the GPU locks cannot be written; MOAT_LOCKS names another")
    return path


def open_file(path: Path) -> int:
    """Open a lock file, whoever owns it, or create it. Child processes do not inherit the file descriptor."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        # Without O_CREAT first: in a sticky folder it is refused for another user's file even if the file exists.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(file, 0o666)
            return file


def try_lock(file: int, *, shared: bool = False) -> bool:
    """Lock without waiting; False if another process holds the lock."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def mutex(folder: Path) -> Iterator[None]:
    """Let only one process at a time look at the locks of a folder and change them."""
    file = open_file(folder / "mutex")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def write_owner(file: int, **more: Any) -> None:
    """Record in a lock file who holds it, for `moat doctor` and for those who wait."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    owner = {"pid": os.getpid(), "user": user, "since": time.time(), "command": shlex.join(arguments), **more}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(owner).encode(), 0)


def read_owner(file: int) -> dict[str, Any]:
    """What :func:`write_owner` recorded; empty if the file is empty or unreadable."""
    try:
        owner = json.loads(os.pread(file, os.fstat(file).st_size, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
