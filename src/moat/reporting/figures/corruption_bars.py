"""Accuracy under each corruption: a row of panels for each family, a column for each set of severities.

The lines are a table's: an axis ``setting`` whose labels are ``Family/Corruption``, and an axis of models; the second
set of severities is given by ``alternative_protocols``. Published numbers are drawn as hollow markers in every column
to show which severities they match. Options: ``titles``: protocol -> title.
"""

from moat.config.grid import Figure
from moat.reporting.figures import Frames, _bars, _cells, check_options
from moat.reporting.style import Style

SHOWS = "lines"
expect = _cells.expect


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its bars (DataFrame of :func:`moat.reporting.figures._cells.content`)."""
    check_options(figure, ["titles"])
    content = _cells.content(figure, frames)
    rows = _cells.add_series(content, ["setting_label"], panel=None)
    # A label without a family is in one called "all".
    labels = (label if "/" in label else f"all/{label}" for label in rows["setting_label"])
    rows[["family", "corruption"]] = [label.split("/", 1) for label in labels]
    protocols, families = (list(dict.fromkeys(rows[name])) for name in ("protocol", "family"))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(rows["series"]))}
    canvas, grid = style.new(len(families), len(protocols), height=1.45, width=style.page_width, sharey=True)
    for row, family in enumerate(families):
        for axes, protocol in zip(grid[row], protocols, strict=True):
            part = rows[(rows["family"] == family) & (rows["protocol"] == protocol)]
            _bars.draw(axes, part, "corruption", numbers, style, inches=style.page_width / len(protocols) - 0.4)
            _bars.finish(axes, part, "%")
            if part["measured"].isna().all():
                style.empty(axes, _cells.why_empty(part))
            if row == 0:
                title = figure.options.get("titles", {}).get(protocol, protocol)
                axes.set_title(title, loc="left", color=style.muted)
        grid[row][0].set_ylabel(f"{family}\naccuracy (%)")
    style.legend(canvas, style.published() if rows["published"].notna().any() else None)
    return canvas, content
