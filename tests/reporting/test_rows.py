"""Rows in whatever order they stand in the file."""

import numpy as np
import pytest
from reporting_tree import rows

from moat.errors import DataError
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


@pytest.mark.parametrize("again", [slice(0, 1), slice(49, 50), slice(60, 61)])
def test_an_example_twice_is_refused_wherever_it_stands(tmp_path, again):
    import pandas as pd

    frame = rows("dramoe", {}, 50, seed=1)
    doubled = pd.concat([frame.iloc[: again.stop], frame.iloc[again], frame.iloc[again.stop :]])
    doubled.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="holds an example twice"):
        Rows(tmp_path / "rows.parquet")
