"""The journal of an evaluation: all that was measured so far, in one file to which shard after shard is appended.

A record is a mark, the length of its content, the sha256 of that, and the content: an Arrow stream of the rows, whose
schema holds the rest as JSON. Damage (a record cut short by a kill, wrong bytes after a power cut) costs the records
that it hits: reading goes on at the next mark.
"""

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from moat.base.errors import ConfigError, DataError, MoatError
from moat.base.files import write_bytes
from moat.base.locks import lock
from moat.machine.usage import cpu_seconds

log = logging.getLogger(__name__)

_MARK = b"\x89moat\r\n\x1a"
_LENGTH, _DIGEST = 8, 32
_HEADER = len(_MARK) + _LENGTH + _DIGEST
# In the schema of a record's rows.
_KEY = b"moat"
# A kill of the process loses nothing that was written; a power cut at most what was measured for so long.
SYNC_SECONDS = 5.0


@dataclass(frozen=True)
class Entry:
    """A measured shard.

    Attributes:
        seconds, cpu_seconds: what measuring it took; the latter of all threads.
        flags: what the attack noticed about the model: name of the flag -> message.
    """

    rows: pd.DataFrame
    seconds: float
    cpu_seconds: float
    flags: dict[str, str]


class Journal:
    """A journal that is open for this process alone; another one that evaluates the same waits until it is closed.

    Raises:
        ConfigError: the file cannot be created or written to. DataError: no space left on the device.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = self._open()
        self._records = dict(_read(path))
        self._used: set[str] = set()
        self._synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def shard(self, made_of: Mapping[str, Any], measure) -> tuple[Entry, bool]:
        """The shard that was made of exactly this, and whether it was there; else it is measured and appended.

        Args:
            made_of: all that its rows depend on, as JSON content.
            measure: returns rows and flags.
        """
        fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        self._used.add(fingerprint)
        if fingerprint in self._records:
            return _unpack(self._records[fingerprint]), True
        started, cpu_started = time.perf_counter(), cpu_seconds()
        rows, flags = measure()
        entry = Entry(rows, time.perf_counter() - started, cpu_seconds() - cpu_started, flags)
        self._records[fingerprint] = content = _pack(fingerprint, entry)
        self._append(_record(content))
        return entry, False

    def tidy(self) -> None:
        """Drop what this evaluation did not use: shards of other weights, settings or code, and what is damaged."""
        kept = b"".join(_record(content) for name, content in self._records.items() if name in self._used)
        if len(kept) == os.fstat(self._file).st_size:
            return
        try:
            write_bytes(self.path, kept)
        except MoatError as error:
            # All is measured: this only saves space.
            log.warning("%s", error)

    def close(self) -> None:
        try:
            self._sync()
        finally:
            os.close(self._file)

    def _open(self) -> int:
        """The open, locked file, at the end of which is written."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, flags, 0o666)
            except OSError as error:
                explained = self._explained(error)
                if explained is error:
                    explained = ConfigError(f"{self.path}: cannot be written here ({error.strerror})")
                raise explained from error
            # Without one, records are still appended in one piece each: two processes do the same work twice.
            lock(file, self.path, waiting="another process makes this evaluation")
            if self._is_still(file):
                return file
            # Whoever held the lock has tidied it: another file has this name now.
            os.close(file)

    def _is_still(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    def _append(self, record: bytes) -> None:
        before = os.fstat(self._file).st_size
        left = memoryview(record)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, before)
            raise self._explained(error) from error
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._explained(error) from error
        self._synced = time.monotonic()

    def _explained(self, error: OSError) -> Exception:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        return DataError(f"{self.path}: no space left on the device; what was measured before is kept")


# -- records -------------------------------------------------------------------
def _record(content: bytes) -> bytes:
    return b"".join([_MARK, len(content).to_bytes(_LENGTH, "big"), hashlib.sha256(content).digest(), content])


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    """Fingerprint and content of the records that are whole."""
    everything, start, end = path.read_bytes(), 0, 0
    while (start := everything.find(_MARK, start)) >= 0:
        if (content := _content(everything, start)) is None:
            start += 1
            continue
        if start != end:
            log.warning("%s: %d bytes are damaged; measured again", path, start - end)
        yield _metadata(_schema(content))["fingerprint"], content
        start = end = start + _HEADER + len(content)
    if end != len(everything):
        log.warning("%s: %d bytes are damaged; measured again", path, len(everything) - end)


def _content(everything: bytes, start: int) -> bytes | None:
    """The content of the record that starts there; None where it is not whole."""
    at = start + len(_MARK)
    length = int.from_bytes(everything[at : at + _LENGTH], "big")
    digest = everything[at + _LENGTH : start + _HEADER]
    content = everything[start + _HEADER : start + _HEADER + length]
    # A wrong length may be any number: without this, each of many marks would be hashed to the end of the file.
    if len(content) != length:
        return None
    return content if hashlib.sha256(content).digest() == digest else None


def _pack(fingerprint: str, entry: Entry) -> bytes:
    metadata = {
        "fingerprint": fingerprint,
        "seconds": entry.seconds,
        "cpu_seconds": entry.cpu_seconds,
        "flags": entry.flags,
    }
    table = pa.Table.from_pandas(entry.rows, preserve_index=False)
    table = table.replace_schema_metadata({_KEY: json.dumps(metadata)})
    stream = pa.BufferOutputStream()
    # For so few rows zstd would take longer than all else.
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_stream(stream, table.schema, options=options) as writer:
        writer.write_table(table)
    return stream.getvalue().to_pybytes()


def _unpack(content: bytes) -> Entry:
    table = pa.ipc.open_stream(pa.BufferReader(content)).read_all()
    metadata = _metadata(table.schema)
    return Entry(table.to_pandas(), metadata["seconds"], metadata["cpu_seconds"], metadata["flags"])


def _schema(content: bytes) -> pa.Schema:
    return pa.ipc.open_stream(pa.BufferReader(content)).schema


def _metadata(schema: pa.Schema) -> dict[str, Any]:
    return json.loads(schema.metadata[_KEY])
