"""One file from an address to a path: resumed, retried, and recognised when it is an error page."""

import errno
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import moat
from moat.base.errors import DataError
from moat.base.progress import progress

#: Seconds before the second, third, … attempt.
BACKOFF = (1, 2, 4, 8)
TIMEOUT = 60
_BLOCK = 1 << 20
#: Answers that say "later", as opposed to "no".
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


class _Again(Exception):
    """This attempt failed in a way that the next one may not."""


TRANSIENT = (_Again, http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)


@dataclass
class _Answer:
    """An open source: what follows ``start``, ``total`` bytes altogether if known."""

    stream: BinaryIO
    start: int
    total: int | None


def download(address: str, part: Path, *, size: int | None, description: str) -> None:
    """Bring the content of ``address`` to ``part``, going on where ``part`` ends if it exists already.

    Args:
        address: an http(s) or file URL, or a path.
        size: bytes, if known: another size is refused before anything is transferred.

    Raises:
        DataError: names the address and the reason, after all attempts. ``part`` keeps what arrived.
    """
    reached, failures = _size(part), 0
    while True:
        try:
            return _attempt(address, part, size, description)
        except TRANSIENT as error:
            # A connection that breaks often but brings something each time is worth keeping.
            failures = failures + 1 if _size(part) <= reached else 1
            reached = max(reached, _size(part))
            _wait(address, failures, error)
        except OSError as error:
            raise _final(error, address, part) from error


def read_text(address: str) -> str:
    """A small text file at ``address``. Raises DataError like :func:`download`, FileNotFoundError where is none."""
    failures = 0
    while True:
        try:
            with _open(address, 0) as answer:
                return answer.stream.read(_BLOCK).decode("utf-8", errors="replace")
        except TRANSIENT as error:
            failures += 1
            _wait(address, failures, error)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataError(f"{address}: {error}") from error


def _wait(address: str, failures: int, error: BaseException) -> None:
    """Sleep before the next attempt, or give up."""
    reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
    if failures > len(BACKOFF):
        raise DataError(f"{address}: gave up after {failures} attempts: {reason}") from error
    print(f"{address}: {reason}; trying again in {BACKOFF[failures - 1]} s", file=sys.stderr, flush=True)
    time.sleep(BACKOFF[failures - 1])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(address: str, part: Path, size: int | None, description: str) -> None:
    have = _size(part)
    if size is not None and have > size:
        have = 0
    if size is not None and have == size:
        return
    with _open(address, have) as answer:
        if size is not None and answer.total is not None and answer.total != size:
            raise DataError(f"{address}: has {answer.total} bytes; expected {size}")
        _copy(answer, part, address, description)


def _copy(answer: _Answer, part: Path, address: str, description: str) -> None:
    first = answer.stream.read(_BLOCK)
    if answer.start == 0 and first[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{address}: the server answered with an HTML page instead of the file")
    with (
        open(part, "r+b" if part.exists() else "wb") as target,
        progress(answer.total, description=description, unit="B", initial=answer.start) as bar,
    ):
        target.seek(answer.start)
        target.truncate()
        block = first
        while block:
            target.write(block)
            bar.update(len(block))
            block = answer.stream.read(_BLOCK)
        arrived = target.tell()
    if answer.total is not None and arrived < answer.total:
        raise _Again(f"the connection ended after {arrived} of {answer.total} bytes")


@contextmanager
def _open(address: str, start: int) -> Iterator[_Answer]:
    """Open an address at byte ``start``, or at 0 where the server cannot."""
    if is_url(address) and urlsplit(address).scheme != "file":
        yield from _open_http(address, start)
        return
    path = as_path(address)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with open(path, "rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        start = start if start <= total else 0
        stream.seek(start)
        yield _Answer(stream, start, total)


def _open_http(address: str, start: int) -> Iterator[_Answer]:
    # "identity": a compressed transfer would have other lengths and ranges.
    headers = {"User-Agent": f"moat/{moat.__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                # Nothing lies beyond what we have: either it is whole, or it is something else. Begin again.
                yield from _open_http(address, 0)
                return
            _refuse(address, error.code, error.reason)
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status == 206 and not resumed:
            raise DataError(f"{address}: the server sent another part of the file than the one asked for")
        if response.headers.get_content_type() == "text/html" and not resumed:
            raise DataError(f"{address}: the server answered with an HTML page instead of the file")
        begin, length = (start if resumed else 0), response.headers.get("Content-Length")
        yield _Answer(response, begin, begin + int(length) if length and length.isdigit() else None)


def _refuse(address: str, code: int, reason: str) -> None:
    if code in _TEMPORARY:
        raise _Again(f"HTTP {code} {reason}")
    if code in (404, 410):
        raise FileNotFoundError(errno.ENOENT, f"no such file (HTTP {code})", address)
    raise DataError(f"{address}: HTTP {code} {reason}")


def _final(error: OSError, address: str, part: Path) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"{part}: no space left on the device while fetching {address}; the next call goes on here")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{address}: {error.strerror}")
    return DataError(f"{address} to {part}: {error}")


def is_url(address: str) -> bool:
    """Whether an address is a URL and not a path."""
    return urlsplit(address).scheme in ("http", "https", "file")


def as_path(address: str) -> Path:
    """A file URL or a path as a path."""
    return Path(unquote(urlsplit(address).path)) if is_url(address) else Path(address)


def join(base: str, name: str) -> str:
    """The address of ``name`` below a folder's address."""
    return f"{base.rstrip('/')}/{urllib.request.pathname2url(name)}" if is_url(base) else str(Path(base) / name)
