"""Tables of which `make test` runs some rows, and `make test-long` the others."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def some(rows: Iterable[Any], keep: Callable[[Any], bool]) -> list[Any]:
    """The rows of a ``parametrize``: those that ``keep`` takes as they are, all others marked ``long``."""
    return [row if keep(row) else pytest.param(*_values(row), marks=pytest.mark.long) for row in rows]


def _values(row: Any) -> tuple[Any, ...]:
    return row if isinstance(row, tuple) else (row,)
