"""What wrong clocks leave in a workspace, and Snakemake does not cope with by itself."""

import contextlib
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)


def clamp_future_mtimes(folder: str | os.PathLike) -> list[Path]:
    """Give files below ``folder`` whose modification time lies in the future that of now.

    What is made from such a file is older than its input, which Snakemake takes for a failure. (It compares contents
    before it makes anything again for its time alone, so that the time itself tells nothing.)

    The log warns of those that may not be changed because they are another user's.

    Returns:
        The changed files.
    """
    now, changed, kept = time.time(), [], []
    for path in sorted(Path(folder).rglob("*")):
        # One may vanish while this looks.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime > now + 1:
                try:
                    os.utime(path, (now, now))
                    changed.append(path)
                except OSError:
                    kept.append(path)
    if kept:
        what = "has a time in the future and is another user's; what is made from it may be made again each time"
        log.warning("%s%s: %s", kept[0], f" and {len(kept) - 1} more" if len(kept) > 1 else "", what)
    return changed
