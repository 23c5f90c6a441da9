"""Read the members of tar and zip archives, and of folders, without ever extracting anything to disk."""

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from moat.base.errors import DataError

#: What the standard library raises for a truncated archive, or for a file that is no archive.
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)

Member = tuple[str, Callable[[], bytes]]


def members(path: Path) -> Iterator[Member]:
    """Iterate over the regular files of an archive or folder as (name, function that reads the content).

    Call a member's function before advancing to the next member: a tar file is read as a stream.

    Raises:
        DataError: not an archive, truncated, or a member that is a link or points outside; names both files.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes
        return
    listed = _zip_members if zipfile.is_zipfile(path) else _tar_members
    try:
        for name, read in listed(path):
            yield name, lambda name=name, read=read: _guarded(path, name, read)
    except BROKEN as error:
        raise DataError(f"{path}: not a whole tar or zip archive ({_reason(error)})") from error


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of every member whose name is ``wanted``. An unsafe name anywhere in the archive is an error."""
    return {name: read() for name, read in members(path) if wanted(name)}


def _guarded(path: Path, name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except BROKEN as error:
        raise DataError(f"{path}: member {name!r} cannot be read, the archive is damaged ({_reason(error)})") from error


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            _check_name(path, member.name)
            if member.isdir():
                continue
            if not member.isreg():
                raise DataError(f"{path}: member {member.name!r} is a link or a special file; refused")
            yield member.name, lambda member=member: archive.extractfile(member).read()


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _check_name(path, member.filename)
            if member.is_dir():
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{path}: member {member.filename!r} is a link or a special file; refused")
            if member.flag_bits & 1:
                raise DataError(f"{path}: member {member.filename!r} is encrypted; refused")
            yield member.filename, lambda member=member: archive.read(member)


def _check_name(path: Path, name: str) -> None:
    # Backslashes and drive letters make a path on Windows.
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or (parts and (parts[0].startswith("/") or parts[0].endswith(":"))):
        raise DataError(f"{path}: member {name!r} points outside the archive; refused")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
