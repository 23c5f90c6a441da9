"""Whether a finished file was cut short, seen in a moment."""

import json
import os
from pathlib import Path


def is_damaged(path: str | os.PathLike) -> bool:
    """Whether a finished parquet, safetensors or JSON file was cut short; False where there is none, and of others.

    Only what can be seen in a moment: a damage inside the file is found by the checksum in the run's or data's record
    when it is used.
    """
    path = Path(path)
    if path.suffix not in _ENDS:
        return False
    try:
        with open(path, "rb") as stream:
            return not _ENDS[path.suffix](stream, os.fstat(stream.fileno()).st_size)
    except FileNotFoundError:
        return False


def _parquet_ends(stream, size: int) -> bool:
    return size > 12 and stream.read(4) == b"PAR1" and _tail(stream, size, 4) == b"PAR1"


def _json_ends(stream, size: int) -> bool:
    return size > 2 and stream.read(1) == b"{" and _tail(stream, size, 2) == b"}\n"


def _safetensors_ends(stream, size: int) -> bool:
    """The header (a length of 8 bytes, and JSON) tells the length of what follows."""
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 + length:
        return False
    try:
        header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return size == 8 + length + max(ends, default=0)
    # JSON of another shape: a list, no offsets, text for numbers.
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return False


def _tail(stream, size: int, count: int) -> bytes:
    stream.seek(size - count)
    return stream.read(count)


_ENDS = {".parquet": _parquet_ends, ".json": _json_ends, ".safetensors": _safetensors_ends}
