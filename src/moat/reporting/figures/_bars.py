"""Grouped bars with intervals, and published numbers as hollow markers on them."""

import textwrap
from collections.abc import Mapping

import pandas as pd

from moat.reporting.labels import SEPARATOR
from moat.reporting.style import NOT_RUN, Style
from moat.reporting.tables import distrusted

GROUP_WIDTH = 0.84
# Of tick labels.
CHARACTERS_PER_INCH = 17


def draw(axes, rows: pd.DataFrame, group: str, numbers: Mapping[str, int], style: Style, *, inches: float) -> None:
    """Bars of ``rows`` (of ``_cells.add_series``), one group for each value of the column ``group``.

    A bar is hatched where a check failed; a bar that was not run is replaced by a small cross. Published numbers are
    hollow markers in the series' colour.

    Args:
        numbers: series -> number, which decides place and look.
        inches: width of the axes, at which the groups' labels are wrapped.
    """
    groups = list(dict.fromkeys(rows[group]))
    present = [name for name in numbers if name in set(rows["series"])]
    width = GROUP_WIDTH / len(present)
    for name, bars in rows.groupby("series", sort=False):
        offset = (present.index(name) + 0.5) * width - GROUP_WIDTH / 2
        places = [groups.index(value) + offset for value in bars[group]]
        look = style.bar(numbers[name])
        for place, (_, bar) in zip(places, bars.iterrows(), strict=True):
            if pd.isna(bar["measured"]):
                axes.plot(place, 0, marker="x", markersize=2.6, color=style.muted, clip_on=False, zorder=4)
            else:
                hatch = {"alpha": 0.55, "hatch": "//////"} if distrusted(bar) else {}
                axes.bar(place, float(bar["measured"]), 0.92 * width, zorder=2, **{**look, **hatch})
                margins = [[bar["measured"] - bar["ci_low"]], [bar["ci_high"] - bar["measured"]]]
                axes.errorbar(place, bar["measured"], margins, color="#222222", linewidth=0.6, zorder=3)
            if isinstance(bar["published"], (int, float)) and pd.notna(bar["published"]):
                axes.plot(place, bar["published"], color=look["facecolor"], zorder=5, **style.published_marker)
        # An empty bar for the legend: a bar that is drawn may be hatched.
        axes.bar(places[0], 0, width, label=name if bars["measured"].notna().any() else f"{name}{NOT_RUN}", **look)
    if rows["measured"].isna().any():
        look = {"marker": "x", "markersize": 2.6, "linestyle": "none", "color": style.muted}
        axes.plot([], [], label="not run", **look)
    if any(distrusted(bar) for _, bar in rows.iterrows() if pd.notna(bar["measured"])):
        hatched = {"facecolor": style.muted, "alpha": 0.55, "hatch": "//////", "edgecolor": "white"}
        axes.bar(0, 0, width, label="hatched: a check failed", **hatched)
    characters = max(4, int(CHARACTERS_PER_INCH * inches / len(groups)) - 1)
    axes.set_xticks(range(len(groups)), [_wrapped(value, characters) for value in groups])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(groups) - 0.5)


def finish(axes, rows: pd.DataFrame, unit: str) -> None:
    """The y axis: percentages from 0 to 100; other numbers as they fall, with a line at zero if some are negative."""
    if unit == "%":
        axes.set_ylim(0, 102)
    elif rows[["measured", "published", "ci_low"]].astype(float).min().min() < 0:
        axes.axhline(0, color="#333333", linewidth=0.6)


def _wrapped(text: str, width: int) -> str:
    parts = text.split(SEPARATOR)
    lines = (textwrap.wrap(part, width, break_long_words=False, break_on_hyphens=False) for part in parts)
    return "\n".join(line for part in lines for line in part)
