"""Fetch a dataset's files: download or copy them, verify them before anything opens them, and list them in a manifest.

During the transfer a file is called ``<name>.part``, which the next call resumes; it gets its final name once its size
and checksum are right. A mirror (a folder or URL with ``SHA256SUMS``) may hold a subset of the data, so its own
checksums apply; the manifest says which files are the official ones.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moat.base.errors import DataError
from moat.base.files import write_json
from moat.base.locks import only_one
from moat.data import download, manifest

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class _Wanted:
    """A file to fetch: its addresses in the order to try them, and its checksum and size where known."""

    name: str
    addresses: tuple[str, ...]
    sha256: str | None
    md5: str | None
    size: int | None


def fetch(spec: Mapping[str, Any], into: Path, *, mirror: str | None = None) -> Path:
    """Fetch the files of a dataset into the folder ``into`` and finally write ``into/manifest.json``.

    Files that are already there and correct stay as they are. Concurrent calls for one folder take turns.

    Args:
        spec: the dataset's description (``config/datasets/<name>.yaml``).
        mirror: a folder, or http(s) or file URL, with the files and ``SHA256SUMS``; None: the official addresses.

    Returns:
        The manifest's path; see :mod:`moat.data.manifest`.

    Raises:
        DataError: a file cannot be fetched; names it and the reason. Its final name stays free.
    """
    into = Path(into)
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{into}: this folder cannot be made ({error.strerror})") from error
    mirror = mirror if spec["files"] else None
    with _turn(into):
        folder = manifest.describe_folder(Path(spec["folder"])) if "folder" in spec else None
        wanted = _wanted(spec, mirror)
        entries = [_fetch_file(file, into) for file in wanted]
        for entry, official in zip(entries, spec["files"], strict=True):
            kind = "sha256" if "sha256" in official else "md5"
            entry["official"] = entry[kind] == official[kind]
        path = into / manifest.NAME
        content = {"version": manifest.VERSION, "dataset": spec["name"], "mirror": mirror, "files": entries}
        content |= {"folder": folder} if folder else {}
        if not _says(path, content):
            write_json(path, content)
    return path


@contextlib.contextmanager
def _turn(into: Path) -> Iterator[None]:
    """Hold the folder's lock if it can be written; in a complete one that is shared read-only nothing is to be done."""
    if not os.access(into, os.W_OK):
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(only_one(into / ".fetch.lock", waiting="another process fetches these files"))
        except OSError as error:
            why = f"cannot be fetched into ({error.strerror})"
            raise DataError(f"{into}: {why}; --into names another folder") from error
        yield


def _says(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether the manifest is there and says this."""
    try:
        return manifest.read_json(path) == content
    except DataError:
        return False


# -- what to fetch ---------------------------------------------------------
def _wanted(spec: Mapping[str, Any], mirror: str | None) -> list[_Wanted]:
    if mirror is None:
        keys = ("sha256", "md5", "size")
        return [
            _Wanted(file["name"], tuple(file.get("urls", ())), *(file.get(key) for key in keys))
            for file in spec["files"]
        ]
    sums, wanted = read_sums(mirror), []
    for name in (file["name"] for file in spec["files"]):
        # In any folder of the mirror.
        found = [path for path in sums if path == name] or [path for path in sums if PurePosixPath(path).name == name]
        if len(found) != 1:
            what = "no entry" if not found else "several entries"
            raise DataError(f"{download.join(mirror, SUMS)}: {what} for {name}; a mirror's files need one each")
        wanted.append(_Wanted(name, (download.join(mirror, found[0]),), sums[found[0]], None, None))
    return wanted


def read_sums(mirror: str) -> dict[str, str]:
    """Read a mirror's SHA256SUMS as path -> sha256.

    Raises:
        DataError: it is missing or malformed; such a mirror is refused.
    """
    if "://" in mirror and not download.is_url(mirror):
        raise DataError(f"{mirror}: not a mirror; allowed: a folder, or an http, https or file URL")
    address = download.join(mirror, SUMS)
    try:
        text = download.read_text(address)
    except FileNotFoundError as error:
        is_folder = not download.is_url(mirror) or mirror.startswith("file:")
        if is_folder and not download.as_path(mirror).is_dir():
            raise DataError(f"{mirror}: no such folder; a mirror is a folder or a URL with {SUMS}") from error
        raise DataError(f"{mirror}: no {SUMS} in this mirror; a mirror without one is refused") from error
    sums = {}
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None or ".." in PurePosixPath(match[2]).parts or match[2].startswith("/"):
            raise DataError(f"{address}, line {number}: {line[:80]!r} is not '<sha256>  <file below the mirror>'")
        sums[match[2].removeprefix("./")] = match[1].lower()
    return sums


# -- one file --------------------------------------------------------------
def _fetch_file(wanted: _Wanted, into: Path) -> dict[str, Any]:
    target = into / wanted.name
    if target.is_file():
        entry = _describe(target)
        fault = _fault(entry, wanted)
        if fault is None:
            return _entry(wanted, entry, _previous_origin(into, entry))
        if not wanted.addresses:
            raise DataError(f"{target}: {fault}; not the file that the dataset's description names")
    if not wanted.addresses:
        raise DataError(
            f"{wanted.name}: has no official address; name a mirror (--mirror, MOAT_MIRROR or data.mirror in "
            f"config/config.yaml), or put the file into {into}"
        )
    return _transfer(wanted, into / f"{wanted.name}.part", target)


def _transfer(wanted: _Wanted, part: Path, target: Path) -> dict[str, Any]:
    """Try the addresses in order, each once more after a wrong checksum: the resumed part may have been stale."""
    failures = []
    for address in wanted.addresses:
        for _ in range(2):
            try:
                download.download(address, part, size=wanted.size, description=wanted.name)
            except DataError as error:
                failures.append(str(error))
                break
            entry = _describe(part)
            fault = _fault(entry, wanted)
            if fault is None:
                with open(part, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(part, target)
                return _entry(wanted, entry, address)
            part.unlink()
        else:
            failures.append(f"{address}: {fault}")
    raise DataError(f"{wanted.name} cannot be fetched: " + "; ".join(failures))


def _describe(path: Path) -> dict[str, Any]:
    """A file's size and digests, computed in one pass."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            sha256.update(block)
            md5.update(block)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest(), "size": path.stat().st_size}


def _fault(entry: Mapping[str, Any], wanted: _Wanted) -> str | None:
    """Why a file is not the wanted one; None if it is. The md5 counts only if no sha256 is known."""
    if wanted.size is not None and entry["size"] != wanted.size:
        return f"has {entry['size']} bytes; expected {wanted.size}"
    kind = "sha256" if wanted.sha256 else "md5"
    if entry[kind] != getattr(wanted, kind):
        return f"{kind} is {entry[kind]}; expected {getattr(wanted, kind)}"
    return None


def _entry(wanted: _Wanted, entry: Mapping[str, Any], origin: str | None) -> dict[str, Any]:
    return {"name": wanted.name, "path": wanted.name, **entry, "origin": origin}


def _previous_origin(into: Path, entry: Mapping[str, Any]) -> str | None:
    """The origin of a file that was already there, from an earlier manifest; None: the user put it there."""
    try:
        files = manifest.read_json(into / manifest.NAME)["files"]
        return next((file["origin"] for file in files if file["sha256"] == entry["sha256"]), None)
    except (DataError, KeyError, TypeError):
        return None
