"""Measured numbers as grouped bars with their intervals; published ones as hollow markers.

Options:
    group: the axis (or dataset, arch, method) whose points stand apart along the x axis.
    panel: an axis, or dataset, arch, method: one panel for each (default: one panel).
    columns: panels side by side (default: 2).

The remaining axes distinguish the bars of a group. Lines may have any measure, the same one within a panel.
"""

import math

from moat.base.errors import ConfigError
from moat.config.grid import Figure
from moat.reporting import measures
from moat.reporting.figures import Frames, _bars, _cells, check_options
from moat.reporting.style import Style

SHOWS = "lines"
expect = _cells.expect
# What the y axis takes, in inches.
MARGIN = 0.55


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its bars (DataFrame of :func:`moat.reporting.figures._cells.content`)."""
    check_options(figure, ["group", "panel", "columns"])
    content = _cells.content(figure, frames)
    content = content[content["protocol"].isin([line.cell.protocol for line in figure.lines])]
    group, panel = (_cells.column(figure, name, content.columns) for name in ("group", "panel"))
    if group is None:
        raise ConfigError(f"config/studies/{figure.study}.yaml: {figure.name}: option group is missing: an axis")
    rows = _cells.add_series(content, [group, panel], panel=panel)
    parts = _cells.panels(rows, panel)
    columns = min(len(parts), figure.options.get("columns", 2))
    width = _width(rows, group, style) if columns == 1 else style.page_width
    canvas, grid = style.new(math.ceil(len(parts) / columns), columns, height=2.3, width=width)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(rows["series"]))}
    shown = {line.label: line.cell.measure for line in figure.lines}
    for axes in grid.flat[len(parts) :]:
        axes.set_axis_off()
    for axes, (_, part) in zip(grid.flat, parts, strict=False):
        measure = shown[part["label"].iloc[0]]
        what, unit = measure.replace("_", " "), measures.get(measure).unit
        _bars.draw(axes, part, group, numbers, style, inches=width / columns - MARGIN)
        _bars.finish(axes, part, unit)
        axes.set_title(part["title"].iloc[0], loc="left", color=style.muted)
        axes.set_ylabel(f"{what} ({unit})" if unit else what)
        if part["measured"].isna().all():
            style.empty(axes, _cells.why_empty(part))
    style.legend(canvas, style.published() if rows["published"].notna().any() else None)
    return canvas, content


def _width(rows, group: str, style: Style) -> float:
    """A page if bars were narrower than about two millimetres in a column, or labels touched; else a column."""
    groups = rows[group].unique()
    longest = max(len(word) for name in groups for word in name.split())
    labels = len(groups) * (longest + 1) / _bars.CHARACTERS_PER_INCH
    bars = 0.08 * len(groups) * rows["series"].nunique()
    return style.page_width if max(labels, bars) > style.column_width - MARGIN else style.column_width
