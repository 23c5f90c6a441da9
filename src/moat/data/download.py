"""Download one file: resume, retry, and recognise an error page that comes in its place."""

import errno
import http.client
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

import moat
from moat.base.errors import DataError
from moat.base.progress import progress

#: Seconds of waiting before the second, third, … attempt.
BACKOFF = (1, 2, 4, 8)
TIMEOUT = 60
_BLOCK = 1 << 20
#: HTTP status codes that mean "try again later".
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


class _TransientError(Exception):
    """An attempt failed, and the next one may succeed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows http to http or https, and https to https only: over http anybody on the way may answer."""

    def redirect_request(self, request, stream, code, message, headers, address):
        scheme = urlsplit(address).scheme
        if scheme not in ("http", "https") or (request.type == "https" and scheme == "http"):
            raise DataError(f"{request.full_url}: leads to {address}; from {request.type} that is not followed")
        return super().redirect_request(request, stream, code, message, headers, address)


TRANSIENT = (_TransientError, http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)


@dataclass
class _Response:
    """An open source at byte ``start`` of ``total`` bytes, None if unknown."""

    stream: BinaryIO
    start: int
    total: int | None


def download(address: str, part: Path, *, size: int | None, description: str) -> None:
    """Copy the content of ``address`` to ``part``, resuming at the end of ``part`` if it exists.

    Args:
        address: an http(s) or file URL, or a path.
        size: the size in bytes, if known; a source of another size is refused before the transfer.

    Raises:
        DataError: all attempts failed; names the address and the reason. ``part`` keeps what arrived.
    """
    reached, failures = _size(part), 0
    while True:
        try:
            return _attempt(address, part, size, description)
        except TRANSIENT as error:
            # Count only the failures since the last progress: a connection that often breaks still gets there.
            failures = failures + 1 if _size(part) <= reached else 1
            reached = max(reached, _size(part))
            _wait(address, failures, error)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = f"{part}: no space left on the device while fetching {address}; the next call goes on here"
            elif isinstance(error, FileNotFoundError):
                message = f"{address}: {error.strerror}"
            else:
                message = f"{address} to {part}: {error}"
            raise DataError(message) from error


def read_text(address: str) -> str:
    """Read a small text file at ``address``.

    Raises:
        DataError: as for :func:`download`.
        FileNotFoundError: there is no such file.
    """
    failures = 0
    while True:
        try:
            with _open(address, 0) as response:
                content = response.stream.read(_BLOCK + 1)
                if len(content) > _BLOCK:
                    raise DataError(f"{address}: has more than {_BLOCK} bytes; refused")
                return content.decode("utf-8-sig", errors="replace")
        except TRANSIENT as error:
            failures += 1
            _wait(address, failures, error)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataError(f"{address}: {error}") from error


def _wait(address: str, failures: int, error: BaseException) -> None:
    """Wait before the next attempt, or give up with a DataError, at once if no later attempt can do better."""
    cause = getattr(error, "reason", error)
    reason = (" ".join(str(cause).split()) or type(error).__name__) + _through(address)
    if _is_permanent(cause):
        raise DataError(f"{address}: {reason}") from error
    if failures > len(BACKOFF):
        raise DataError(f"{address}: gave up after {failures} attempts: {reason}") from error
    print(f"{address}: {reason}; trying again in {BACKOFF[failures - 1]} s", file=sys.stderr, flush=True)
    time.sleep(BACKOFF[failures - 1])


def _is_permanent(cause: BaseException | str) -> bool:
    """A certificate that is not valid, a host that does not exist, an address that is none (whose reason is text)."""
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_NONAME
    return isinstance(cause, (ssl.SSLCertVerificationError, http.client.InvalidURL, str))


def _through(address: str) -> str:
    """The proxy that the environment names for this address, without its user and password."""
    parts = _split(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return f" (through the proxy {proxy.rpartition('@')[2]} of {parts.scheme}_proxy)"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(address: str, part: Path, size: int | None, description: str) -> None:
    have = _size(part)
    if size is not None and have > size:
        have = 0
    if size is not None and have == size:
        return
    with _open(address, have) as response:
        if size is not None and response.total is not None and response.total != size:
            raise DataError(f"{address}: has {response.total} bytes; expected {size}")
        _copy(response, part, address, description)


def _copy(response: _Response, part: Path, address: str, description: str) -> None:
    first = response.stream.read(_BLOCK)
    if response.start == 0 and first[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{address}: the server answered with an HTML page instead of the file")
    with (
        open(part, "r+b" if part.exists() else "wb") as target,
        progress(response.total, description=description, unit="B", initial=response.start) as bar,
    ):
        target.seek(response.start)
        target.truncate()
        block = first
        while block:
            target.write(block)
            bar.update(len(block))
            block = response.stream.read(_BLOCK)
        arrived = target.tell()
    if response.total is not None and arrived < response.total:
        raise _TransientError(f"the connection ended after {arrived} of {response.total} bytes")


@contextmanager
def _open(address: str, start: int) -> Iterator[_Response]:
    """Open an address at byte ``start``, or at 0 if the server cannot resume."""
    if is_url(address) and _split(address).scheme != "file":
        yield from _open_http(address, start)
        return
    path = as_path(address)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with open(path, "rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        start = start if start <= total else 0
        stream.seek(start)
        yield _Response(stream, start, total)


def _open_http(address: str, start: int) -> Iterator[_Response]:
    # "identity", because lengths and ranges of a compressed transfer would be those of the compressed bytes.
    headers = {"User-Agent": f"moat/{moat.__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        opener = urllib.request.build_opener(_Redirects)
        response = opener.open(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                # Nothing beyond byte ``start``: the part is either complete or another file's. Start over.
                yield from _open_http(address, 0)
                return
            if error.code in _TEMPORARY:
                raise _TransientError(f"HTTP {error.code} {error.reason}") from error
            if error.code in (404, 410):
                raise FileNotFoundError(errno.ENOENT, f"no such file (HTTP {error.code})", address) from error
            raise DataError(f"{address}: HTTP {error.code} {error.reason}") from error
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status == 206 and not resumed:
            raise DataError(f"{address}: the server sent another part of the file than the one asked for")
        if response.headers.get_content_type() == "text/html" and not resumed:
            raise DataError(f"{address}: the server answered with an HTML page instead of the file")
        begin, length = (start if resumed else 0), response.headers.get("Content-Length")
        yield _Response(response, begin, begin + int(length) if length and length.isdigit() else None)


def is_url(address: str) -> bool:
    """Whether an address is a URL rather than a path."""
    return _split(address).scheme in ("http", "https", "file")


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise DataError(f"{address}: neither a URL nor a path ({error})") from error


def as_path(address: str) -> Path:
    """The path of a file URL, or the path itself."""
    return Path(unquote(_split(address).path)) if is_url(address) else Path(address)


def join(base: str, name: str) -> str:
    """The address of ``name`` below a folder's address."""
    return f"{base.rstrip('/')}/{urllib.request.pathname2url(name)}" if is_url(base) else str(Path(base) / name)
