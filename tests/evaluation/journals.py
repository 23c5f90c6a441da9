"""What lies in a journal, for tests that look at it or lose a part of it."""

from pathlib import Path

import pandas as pd

from moat.evaluation import journal

MARK = journal._MARK


def shards(path: Path) -> list[pd.DataFrame]:
    """The rows of each record, in the order of their measurement; none where there is no journal yet."""
    return [journal._unpack(content).rows for _, content in journal._read(path)] if path.exists() else []


def lose(path: Path, *numbers: int) -> None:
    """Take records out of a journal."""
    records = [content for _, content in journal._read(path)]
    path.write_bytes(b"".join(journal._record(each) for n, each in enumerate(records) if n not in numbers))
