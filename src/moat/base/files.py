"""Atomic writes: a file appears under its final name complete, or not at all."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, DataError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it to ``path``.

    Whatever goes wrong inside the block (an exception, a kill, a full disk) leaves ``path`` as it was: absent, or the
    previous complete file. After a kill the temporary file remains until the next write to ``path`` removes it.

    Raises:
        DataError: no space left on the device; names the file.
        ConfigError: the folder cannot be created or written to.
    """
    path = Path(path)
    temporary, held = _temporary_beside(path)
    try:
        yield temporary
        _publish(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{path}: no space left on the device; nothing was written under this name") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(held)


def check_writable(path: str | os.PathLike) -> None:
    """Fail before hours of work rather than after them if ``path`` cannot be written.

    Raises:
        ConfigError: it cannot be written; says why.
    """
    if Path(path).is_dir():
        raise ConfigError(f"{path}: is a folder; the name of a file is needed")
    temporary, held = _temporary_beside(Path(path))
    temporary.unlink()
    os.close(held)


def _temporary_beside(path: Path) -> tuple[Path, int]:
    """A new file and its open, locked file descriptor. The lock marks the file as being written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{path}: no space left on the device") from error
        raise ConfigError(f"{path}: cannot be written here ({error.strerror})") from error
    # On a file system without locks, leftovers stay.
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    if os.fstat(handle).st_nlink:
        return Path(name), handle
    # Before it was locked, another writer took it for a leftover and removed it.
    os.close(handle)
    return _temporary_beside(path)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left beside ``path``: those that no process has locked."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError), open(leftover, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _publish(temporary: Path, path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write ``content`` to ``path`` as indented JSON, atomically. Raises ValueError for NaN, which is not JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, or is not JSON; names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error


def visible(folder: Path, pattern: str) -> list[Path]:
    """The files below ``folder`` that match a glob pattern, sorted, without those whose own or folder's name begins
    with a dot: editors and file managers put such files beside what is edited, some of them links that lead nowhere.
    """
    found = (path for path in folder.glob(pattern) if path.name[0] != ".")
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def hash_file(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content, read block by block."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
