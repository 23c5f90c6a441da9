"""The rows of an evaluation, and the statistics computed from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from moat.base.errors import DataError
from moat.evaluation.statistics import MeanAccuracy, clustered_mean

Settings = tuple[str, ...]
# Column -> the type it must have, and its name.
_ROWS = {
    "setting": (pyarrow.types.is_string, "string"),
    "index": (pyarrow.types.is_integer, "integer"),
    "correct": (pyarrow.types.is_boolean, "boolean"),
}
_CONFIDENCE = {"confidence": (pyarrow.types.is_floating, "floating point")}
# Ten thousand images under a thousand settings: a small file can claim rows and pages that no memory holds.
_MOST_ROWS = 10_000_000
_MOST_BYTES = 250_000_000


class Rows:
    """Which examples are classified correctly, setting by setting.

    Attributes:
        correct: setting -> whether each example is right (N,), by ascending index.
        index: setting -> the examples' indices (N,).
    """

    def __init__(self, path: Path):
        """Read a parquet file.

        Raises:
            DataError: it is missing, damaged, of other columns or larger than any evaluation, or holds an example
                twice; names it.
        """
        self.path = path
        self.index: dict[str, np.ndarray] = {}
        self.correct: dict[str, np.ndarray] = {}
        codes, names, index, correct = _read(path)
        if not _in_order(codes, index):
            order = np.lexsort((index, codes))
            codes, index, correct = codes[order], index[order], correct[order]
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else []
        for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
            name = names[codes[start]]
            self.index[name], self.correct[name] = index[start:end], correct[start:end]
            if (np.diff(index[start:end]) == 0).any():
                raise DataError(f"{path}: the setting {name!r} holds an example twice")

    def matrix(self, settings: Settings) -> np.ndarray:
        """Whether each example is right under each setting (len(settings), N).

        Raises:
            DataError: a setting without rows, or settings that hold different examples; names the file.
        """
        for setting in settings:
            if setting not in self.correct:
                known = ", ".join(self.correct)
                raise DataError(f"{self.path}: no rows for the setting {setting!r}; it holds {known}. Evaluate again")
            if not np.array_equal(self.index[setting], self.index[settings[0]]):
                raise DataError(
                    f"{self.path}: the attack settings {settings[0]!r} and {setting!r} hold different examples"
                )
        return np.stack([self.correct[setting] for setting in settings])


def worst(rows: Rows, settings: Settings) -> tuple[int, int]:
    """(examples that are classified correctly under every setting, number of examples)."""
    survives = rows.matrix(settings).all(0)
    return int(survives.sum()), len(survives)


def mean(rows: Rows, settings: Settings) -> MeanAccuracy:
    """Mean accuracy over the settings, every example counted once."""
    return clustered_mean(rows.matrix(settings).mean(0), len(settings))


def confidence(rows: Rows, settings: Settings) -> tuple[float, float, int]:
    """Mean, and variance between rows, of the confidence (largest softmax value) over all settings; number of rows."""
    rows.matrix(settings)
    wanted = [("setting", "in", list(settings))]
    try:
        with pyarrow.parquet.ParquetFile(rows.path) as file:
            _check_columns(rows.path, file, _CONFIDENCE)
        table = pyarrow.parquet.read_table(
            rows.path, columns=list(_CONFIDENCE), filters=wanted, page_checksum_verification=True
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{rows.path}: no column 'confidence' can be read ({error})") from error
    values = table["confidence"].to_numpy().astype(np.float64)
    return float(values.mean()), float(values.var(ddof=1)) if len(values) > 1 else 0.0, len(values)


STATISTICS: Mapping[str, Callable[[Rows, Settings], Any]] = {"worst": worst, "mean": mean, "confidence": confidence}


def _in_order(codes: np.ndarray, index: np.ndarray) -> bool:
    """Whether rows are sorted by setting and index, as they are written: sorting again is expensive."""
    step = np.diff(codes)
    return bool(((step > 0) | ((step == 0) & (np.diff(index) > 0))).all())


def _read(path: Path) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """Codes of the settings, their names, index and correct of every row."""
    try:
        with pyarrow.parquet.ParquetFile(path, read_dictionary=["setting"], page_checksum_verification=True) as file:
            _check_columns(path, file, _ROWS)
            table = file.read(columns=list(_ROWS))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `moat evaluate … --out {path}` makes it") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}); delete it, and it is made again") from error
    setting = table["setting"].unify_dictionaries().combine_chunks()
    if not len(setting):
        raise DataError(f"{path}: no examples")
    return (
        setting.indices.to_numpy(),
        setting.dictionary.to_pylist(),
        table["index"].to_numpy(),
        table["correct"].to_numpy(),
    )


def _check_columns(path: Path, file: pyarrow.parquet.ParquetFile, columns: Mapping[str, tuple]) -> None:
    """Refuse what has not these columns, or would not fit into memory, before any row is read."""
    if file.metadata.num_rows > _MOST_ROWS:
        raise DataError(f"{path}: {file.metadata.num_rows:,} rows; at most {_MOST_ROWS:,} are read")
    schema = file.schema_arrow
    for name, (has_type, needed) in columns.items():
        if name not in schema.names:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(schema.names)}")
        found = schema.field(name).type
        if not has_type(found.value_type if pyarrow.types.is_dictionary(found) else found):
            raise DataError(f"{path}: the column {name!r} is of type {found}; needed: {needed}")
    pages = sum(
        column["total_uncompressed_size"]
        for group in file.metadata.to_dict()["row_groups"]
        for column in group["columns"]
        if column["path_in_schema"] in columns
    )
    if pages > _MOST_BYTES:
        raise DataError(f"{path}: columns of {pages:,} bytes; at most {_MOST_BYTES:,} are read")
