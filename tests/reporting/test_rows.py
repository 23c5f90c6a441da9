"""Rows in whatever order they stand in the file."""

import re

import numpy as np
import pyarrow.parquet
import pytest
from reporting_tree import rows

from moat.base.errors import DataError
from moat.evaluation.records import write_rows
from moat.reporting.rows import Rows


@pytest.mark.parametrize(
    "order",
    [
        lambda frame: frame,
        lambda frame: frame.sample(frac=1, random_state=0),
        lambda frame: frame.iloc[::-1],
        lambda frame: frame.sort_values(["index", "setting"]),
    ],
    ids=["as written", "shuffled", "backwards", "by example"],
)
def test_the_order_of_the_rows_does_not_matter(tmp_path, order):
    frame = rows("dramoe", {"clean": 0.9}, 50, seed=1)
    order(frame).to_parquet(tmp_path / "rows.parquet")
    found = Rows(tmp_path / "rows.parquet")
    for setting, part in frame.groupby("setting"):
        assert np.array_equal(found.index[setting], np.arange(50))
        assert np.array_equal(found.correct[setting], part["correct"])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_wrong_bytes_in_what_is_read_are_noticed(tmp_path, share):
    path = tmp_path / "rows.parquet"
    write_rows(path, rows("dramoe", {"clean": 0.9}, 2000, seed=1))
    whole = Rows(path)
    group = pyarrow.parquet.read_metadata(path).row_group(0)
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    for name in ("setting", "index", "correct"):
        column, content = columns[name], bytearray(path.read_bytes())
        # Past the page's header, which is some tens of bytes long.
        at = column.data_page_offset + 60 + int(share * max(column.total_compressed_size - 60, 1))
        content[at] ^= 0x10
        (tmp_path / "damaged.parquet").write_bytes(content)
        try:
            found = Rows(tmp_path / "damaged.parquet")
        except DataError as error:
            assert "damaged.parquet" in str(error) and "made again" in str(error)
        else:
            # What the flipped bit belongs to was not read.
            assert all(np.array_equal(found.correct[key], whole.correct[key]) for key in whole.correct)
            assert at >= column.data_page_offset + column.total_compressed_size


@pytest.mark.parametrize("again", [slice(0, 1), slice(49, 50), slice(60, 61)])
def test_an_example_twice_is_refused_wherever_it_stands(tmp_path, again):
    import pandas as pd

    frame = rows("dramoe", {}, 50, seed=1)
    doubled = pd.concat([frame.iloc[: again.stop], frame.iloc[again], frame.iloc[again.stop :]])
    doubled.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="holds an example twice"):
        Rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        # A run of one value takes a few bytes, however long it is.
        ({"setting": ["a"] * 10_000_001}, "10,000,001 rows; at most 10,000,000 are read"),
        ({"setting": ["a" * 251_000_000]}, "bytes; at most 250,000,000 are read"),
        ({"index": [0.5]}, "the column 'index' is of type double; needed: integer"),
        ({"index": [[0]]}, "the column 'index' is of type list<element: int64>; needed: integer"),
        ({"correct": ["no"]}, "the column 'correct' is of type string; needed: boolean"),
    ],
)
def test_what_no_evaluation_can_be_is_refused_before_it_is_read(tmp_path, columns, problem):
    (count,) = {len(values) for values in columns.values()}
    whole = {"setting": ["a"] * count, "index": np.zeros(count, int), "correct": np.ones(count, bool), **columns}
    pyarrow.parquet.write_table(pyarrow.table(whole), tmp_path / "rows.parquet", compression="zstd")
    assert (tmp_path / "rows.parquet").stat().st_size < 1_000_000
    with pytest.raises(DataError, match=re.escape(problem)):
        Rows(tmp_path / "rows.parquet")
