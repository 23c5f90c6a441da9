"""What kills, crashes and wrong clocks leave in a workspace, and Snakemake does not cope with by itself."""

import fcntl
import json
import os
import time
from pathlib import Path

# Held by every Snakemake process here, dry runs included, for as long as it lives: the kernel frees it.
_PRESENCE = "moat-presence"


def clear_dead_locks(folder: str | os.PathLike = ".snakemake") -> list[Path]:
    """Remove the locks that a killed Snakemake left in ``folder``; call it in each one before it takes its own.

    Locks stay wherever any other Snakemake is alive in this folder. (The presence is not inherited: jobs that outlive
    their Snakemake do not count; `moat train` waits for them.)

    Returns:
        What was removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Never closed: the end of the process does.
    presence = os.open(folder / _PRESENCE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    removed = []
    try:
        fcntl.flock(presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        removed = sorted((folder / "locks").glob("*.lock"))
        for lock in removed:
            lock.unlink()
    fcntl.flock(presence, fcntl.LOCK_SH)
    return removed


def forget_the_future(folder: str | os.PathLike) -> list[Path]:
    """Give files below ``folder`` that claim to be from the future the time of now.

    What is made from such a file is older than its input, which Snakemake takes for a failure. (It compares contents
    before it makes anything again for its time alone, so that the time itself tells nothing.)

    Returns:
        The files.
    """
    now = time.time()
    ahead = [path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_mtime > now + 1]
    for path in ahead:
        os.utime(path, (now, now))
    return ahead


def is_damaged(path: str | os.PathLike) -> bool:
    """Whether a finished parquet, safetensors or JSON file was cut short; False where there is none.

    Only what can be seen in a moment: a damage inside the file is found by the checksum in the run's or data's record
    when it is used.
    """
    path = Path(path)
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
    except ValueError:
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _tail(stream, size: int, count: int) -> bytes:
    stream.seek(size - count)
    return stream.read(count)


_ENDS = {".parquet": _parquet_ends, ".json": _json_ends, ".safetensors": _safetensors_ends}
