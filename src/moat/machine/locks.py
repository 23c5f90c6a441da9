"""Lock files that processes of several users share, and that a killed holder frees.

An advisory ``flock`` belongs to the open file: the kernel drops it when its last process is gone, however it went.
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


def shared_folder(environ=os.environ) -> Path:
    """Where the locks of this machine lie: ``MOAT_LOCKS``, or a folder that is the same for every user."""
    if environ.get("MOAT_LOCKS"):
        return make_folder(Path(environ["MOAT_LOCKS"]))
    anyone = Path("/run/lock")
    everyones = anyone.is_dir() and anyone.stat().st_mode & stat.S_IWOTH
    return make_folder((anyone if everyones else Path("/tmp")) / "moat-gpus")


def make_folder(path: Path) -> Path:
    """Make a folder in which every user may make files, and remove only his own.

    Raises:
        ConfigError: it cannot be made or written; says why.
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
    """Open a lock file of anybody's, or make it; a file descriptor that children do not inherit."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        # O_CREAT on a file of another user's is refused in a folder like /tmp, even where it is not needed.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(file, 0o666)
            return file


def try_lock(file: int, *, shared: bool = False) -> bool:
    """Lock without waiting; False where another holds it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def gate(folder: Path) -> Iterator[None]:
    """Only one process at a time looks at the locks of a folder and changes them."""
    file = open_file(folder / "gate")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def write_owner(file: int, **more: Any) -> None:
    """Say in a lock file who holds it, for people."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    owner = {"pid": os.getpid(), "user": user, "since": time.time(), "command": shlex.join(arguments), **more}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(owner).encode(), 0)


def read_owner(file: int) -> dict[str, Any]:
    """What :func:`write_owner` wrote; empty where nothing legible is there."""
    try:
        owner = json.loads(os.pread(file, os.fstat(file).st_size, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
