"""Figures of measured cells: their content, and how it falls into panels, groups and series."""

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from moat.base.errors import ConfigError, unknown_name
from moat.config.grid import Figure
from moat.reporting.figures import Frames
from moat.reporting.labels import SEPARATOR, shared_parts, without_shared
from moat.reporting.results import Results
from moat.reporting.tables import not_run_reason, rows_of

_IDENTITY = ("dataset", "arch", "method", "protocol")
COLUMNS = [
    *("dataset", "arch", "method", "metric", "protocol", "published", "published_std", "measured", "measured_std"),
    *("ci_low", "ci_high", "n", "seeds", "verdict", "checks_failed"),
]


def expect(figure: Figure, results: Results) -> None:
    results.expect([line.cell for line in figure.lines])


def content(figure: Figure, frames: Frames) -> pd.DataFrame:
    """One row per line, as in a table's CSV, even if it was not run; each followed by its alternative protocols.

    Returns:
        label, ``<axis>_label`` for every axis, :data:`COLUMNS`, and reason: why it was not run.
    """
    rows: list[dict[str, Any]] = []
    for line in figure.lines:
        labels = {"label": line.label, **{f"{axis}_label": label for axis, label in line.axes}}
        cells = zip(rows_of(line.cell, frames.results, frames.scale), line.cell.each(), strict=True)
        rows += [{**row, **labels, "reason": not_run_reason(cell, frames.results)} for row, cell in cells]
    axes = [f"{axis}_label" for axis, _ in figure.lines[0].axes]
    return pd.DataFrame(rows, columns=["label", *axes, *COLUMNS, "reason"]).astype({"n": "Int64"})


def column(figure: Figure, option: str, known: Collection[str]) -> str | None:
    """The column of the content that an option names by an axis of the figure, or by dataset, arch, method, protocol.

    Raises:
        ConfigError: there is none of that name; names the study's file.
    """
    name = figure.options.get(option)
    if name is None or f"{name}_label" in known:
        return name and f"{name}_label"
    if name in _IDENTITY:
        return name
    where = f"config/studies/{figure.study}.yaml: {figure.name}: {option}: "
    axes = [each.removesuffix("_label") for each in known if each.endswith("_label")]
    raise ConfigError(where + unknown_name(name, [*axes, *_IDENTITY], what="axis"))


def panels(rows: pd.DataFrame, by: str | None) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) of each panel; one without a title where ``by`` is None."""
    if by is None:
        return [("", rows)]
    return [(str(value), part) for value, part in rows.groupby(by, sort=False, dropna=False)]


def add_series(rows: pd.DataFrame, without: Sequence[str | None], *, panel: str | None) -> pd.DataFrame:
    """``rows`` with the columns series and title.

    A series is labelled by all axes but those in ``without``, less what its panel shares. The title of a panel is its
    value, or, for a column that is no axis, what its labels share.
    """
    rows = rows.copy()
    axes = [name for name in rows.columns if name.endswith("_label") and name not in without]
    whole = rows[axes].agg(SEPARATOR.join, axis=1) if axes else rows["label"].where(rows["label"].isna(), "")
    rows["series"], rows["title"] = whole, "" if panel is None else rows[panel]
    for _, part in rows.groupby(panel or (lambda _: 0), sort=False, dropna=False):
        labels = list(dict.fromkeys(whole[part.index]))
        short = dict(zip(labels, without_shared(labels), strict=True))
        rows.loc[part.index, "series"] = whole[part.index].map(short)
        if panel in _IDENTITY and panel != "protocol":
            rows.loc[part.index, "title"] = shared_parts(labels) or part[panel].iloc[0]
    return rows


def why_empty(rows: pd.DataFrame) -> str:
    """What a panel says in which nothing is measured."""
    return f"not run: {rows['reason'].dropna().iloc[0]}"
