"""The published number of a cell: exactly one row of ``config/published/<study>.csv``, unless the study says none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moat.base.errors import ConfigError

# The columns that identify a number; the label of an axis of that name is the value to look for.
KEYS = ("dataset", "arch", "method", "metric", "setting")
# What a file must have.
COLUMNS = ("table", *KEYS, "value", "std")


@dataclass(frozen=True)
class Published:
    """A number (or, in a table of words, a word), its standard deviation, its line in the file, and its text there."""

    value: float | str | None = None
    std: float | None = None
    line: int | None = None
    text: str | None = None


NOTHING = Published()


class PublishedNumbers:
    """The rows of one study's file, looked up by some of their columns.

    Args:
        rows: as :meth:`moat.config.project.Project.published` reads them, in the file's order.
    """

    def __init__(self, study: str, rows: Sequence[Mapping[str, str]]):
        self.file = f"config/published/{study}.csv"
        self.rows = rows
        # Indexed by table, because a table of a hundred cells looks up a hundred rows.
        self._by_table: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            self._by_table.setdefault(row["table"], []).append(number)

    def find(self, wanted: Mapping[str, str], *, where: str, may_lack: bool) -> Published:
        """The one row whose columns have the ``wanted`` values.

        Raises:
            ConfigError: several rows fit, or none does and ``may_lack`` is false; names ``where``.
        """
        numbers = self._by_table.get(wanted["table"], []) if "table" in wanted else range(len(self.rows))
        found = [n for n in numbers if all(self.rows[n].get(key) == value for key, value in wanted.items())]
        if len(found) > 1:
            raise ConfigError(
                f"{self.file}: {len(found)} rows fit {where} ({wanted}); add a published: key to the point"
            )
        if not found:
            if may_lack:
                return NOTHING
            raise ConfigError(
                f"{self.file}: no row fits {where} ({wanted}); "
                "correct a label, or add not_in_paper: true to the point if the paper has no such number"
            )
        row = self.rows[found[0]]
        return Published(_value(row["value"]), _value(row["std"]), found[0] + 2, row["value"])


def wanted_columns(spec: Mapping[str, Any], points: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """The columns that a cell of table ``spec`` looks up: the table's, axis labels, the points'. Later ones win."""
    wanted = dict(spec["published"])
    for axis, point in points:
        if axis in KEYS:
            wanted[axis] = point["label"]
        wanted.update(point.get("published", {}))
    return wanted


def _value(text: str) -> float | str | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return text
    return number if number is None or math.isfinite(number) else text
