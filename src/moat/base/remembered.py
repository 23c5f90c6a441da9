"""What was computed from a file's content, remembered for other processes as long as the file stays as it is.

A file counts as the same while its path, modification time, size and inode are. What is remembered lies in a JSON file
of the folder ``work``, and only where there is such a folder: it saves time, and nothing else.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from moat.base.errors import MoatError
from moat.base.files import hash_file, read_json, write_json

FOLDER = Path("work")
# Nanoseconds. A file that was written so short a time ago may be written again without another modification time.
SETTLED = 2 * 10**9
# Bytes. Smaller files are hashed faster than it takes to remember them.
LARGE = 64 * 2**20


def key_of(path: Path) -> list[int]:
    """Modification time, size and inode of a file."""
    status = path.stat()
    return [status.st_mtime_ns, status.st_size, status.st_ino]


class Remembered:
    """Values by file, kept in ``FOLDER / name``.

    Args:
        version: of what computes the values; others are forgotten.
    """

    def __init__(self, name: str, version: str):
        self.name, self.version = name, version
        self._values: dict[str, list[Any]] | None = None
        self._new: dict[str, list[Any]] = {}

    def get(self, path: Path, key: list[Any]) -> Any:
        """The value of a file whose key is ``key``; None where there is none."""
        if self._values is None:
            self._values = self._read()
        name = str(path.absolute())
        known, value = self._new.get(name) or self._values.get(name) or (None, None)
        return value if known == key else None

    def put(self, path: Path, key: list[Any], value: Any) -> None:
        """Keep a JSON value of a file until :meth:`save`."""
        if time.time_ns() - path.stat().st_mtime_ns > SETTLED:
            self._new[str(path.absolute())] = [key, value]

    def save(self) -> None:
        """Write what is new. What another process has written meanwhile may be lost, and is computed again."""
        if not self._new or not FOLDER.is_dir():
            return
        self._values = {**self._read(), **self._new}
        with suppress(MoatError, OSError):
            write_json(FOLDER / self.name, {"version": self.version, "files": self._values})
            self._new = {}

    def _read(self) -> dict[str, list[Any]]:
        try:
            content = read_json(FOLDER / self.name)
            return dict(content["files"]) if content["version"] == self.version else {}
        except (MoatError, OSError, KeyError, TypeError, ValueError):
            return {}


def hash_once(path: str | os.PathLike) -> str:
    """The sha256 of a file's content: of a large one computed once, by the first process that needs it."""
    path = Path(path)
    if path.stat().st_size < LARGE:
        return hash_file(path)
    remembered, key = Remembered("hashes.json", "sha256"), key_of(path)
    found = remembered.get(path, key)
    if found is None:
        found = hash_file(path)
        # Unless it was written while it was read.
        if key_of(path) == key:
            remembered.put(path, key, found)
            remembered.save()
    return found
