"""Read the members of tar and zip archives, and of folders, without ever extracting anything to disk.

Members below names that begin with a dot are left out: file managers and editors put such files beside the data.
"""

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from moat.base.errors import DataError

#: What the standard library raises for a truncated archive, or for a file that is no archive.
BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, NotImplementedError, ValueError, MemoryError),
)

Member = tuple[str, Callable[[], bytes]]
_TOO_MUCH = "allowed: {} (64 MiB and a hundred times the archive's own size); refused"


def members(path: Path) -> Iterator[Member]:
    """Iterate over the regular files of an archive or folder as (name, function that reads the content).

    Call a member's function before advancing to the next member: a tar file is read as a stream.

    Raises:
        DataError: not an archive, truncated, or a member that is a link or points outside; names both files.
    """
    if path.is_dir():
        for name, file in files(path):
            yield name, file.read_bytes
        return
    listed = _zip_members if zipfile.is_zipfile(path) else _tar_members
    most = unpacked_limit(path)
    try:
        for name, size, read in listed(path):
            if size > most:
                raise DataError(f"{path}: member {name!r} has {size} bytes; {_TOO_MUCH.format(most)}")
            if not _is_hidden(PurePosixPath(name)):
                yield name, lambda name=name, read=read: _guarded(path, name, read)
    except BROKEN as error:
        raise DataError(f"{path}: not a whole tar or zip archive ({_reason(error)})") from error


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of every member whose name is ``wanted``. An unsafe name anywhere in the archive is an error.

    Raises:
        DataError: as for :func:`members`; or together they are far larger than the archive.
    """
    content, total, most = {}, 0, None if path.is_dir() else unpacked_limit(path)
    for name, read in members(path):
        if wanted(name):
            content[name] = read()
            total += len(content[name])
            if most is not None and total > most:
                raise DataError(f"{path}: its members have more than {total} bytes; {_TOO_MUCH.format(most)}")
    return content


def unpacked_limit(path: Path) -> int:
    """The most bytes that are unpacked from a compressed file: far above what data shrinks by, far below a bomb."""
    return (64 << 20) + 100 * path.stat().st_size


def files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a folder at any depth as (name below it, path), by name. Links are followed inside the folder.

    Raises:
        DataError: a link that leads out of the folder, nowhere, or to a folder that holds it, or a special file.
    """
    root = folder.resolve()
    return sorted(_files(folder, root, (root,)), key=lambda found: PurePosixPath(found[0]))


def _files(folder: Path, root: Path, holders: tuple[Path, ...], below: str = "") -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        name = below + path.name
        if path.name.startswith("."):
            continue
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(root) or not target.exists() or target in holders:
                why = "to a folder that holds it" if target in holders else "nowhere in it"
                raise DataError(f"{root}: {name} is a link that leads {why} (to {target}); put a copy in its place")
        if path.is_dir():
            yield from _files(path, root, (*holders, path.resolve()), f"{name}/")
        elif path.is_file():
            yield name, path
        else:
            raise DataError(f"{root}: {name} is a special file; refused")


def _guarded(path: Path, name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except BROKEN as error:
        raise DataError(f"{path}: member {name!r} cannot be read, the archive is damaged ({_reason(error)})") from error


def _tar_members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(path, "r|*", tarinfo=_TarInfo) as archive:
        for member in archive:
            _check_name(path, member.name)
            if member.isdir():
                continue
            if not member.isreg():
                raise DataError(f"{path}: member {member.name!r} is a link or a special file; refused")
            yield member.name, member.size, lambda member=member: archive.extractfile(member).read()


class _TarInfo(tarfile.TarInfo):
    """A member whose long name, or other header that is read whole, is no longer than names are."""

    def _proc_member(self, archive):
        if self.size > 1 << 20 and not (self.isreg() or self.isdir()):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)


def _zip_members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _check_name(path, member.filename)
            if member.is_dir():
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{path}: member {member.filename!r} is a link or a special file; refused")
            if member.flag_bits & 1:
                raise DataError(f"{path}: member {member.filename!r} is encrypted; refused")
            yield member.filename, member.file_size, lambda member=member: _unzip(archive, member)


def _unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    # No more than is declared, whatever is packed.
    with archive.open(member) as stream:
        return stream.read(member.file_size)


def _is_hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _check_name(path: Path, name: str) -> None:
    # Backslashes and drive letters make a path on Windows.
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or (parts and (parts[0].startswith("/") or parts[0].endswith(":"))):
        raise DataError(f"{path}: member {name!r} points outside the archive; refused")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
