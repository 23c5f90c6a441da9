"""Every published number against what was measured in its place: a point on the diagonal is reproduced.

Left the correct protocol, right the replicas of the protocols that may explain a number. Numbers in percent or points
only. No lines: it is drawn from the cells of all tables. Options: none.
"""

from moat.config import paths
from moat.config.grid import Figure
from moat.reporting import measures
from moat.reporting.figures import Frames, check_options
from moat.reporting.style import Style
from moat.reporting.tables import COLUMNS, CORRECT, read_cells

SHOWS = "cells"
_PANELS = {"correct protocol": True, "replicas of the papers' protocols": False}


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and the rows of ``cells.csv`` that have a published number in percent or points."""
    check_options(figure, [])
    content = _published(frames.results.file(paths.cells(frames.results.scale)))
    canvas, (axes,) = style.new(columns=2, height=2.9, width=0.8 * style.page_width, sharex=True, sharey=True)
    numbers = {study: number for number, study in enumerate(dict.fromkeys(content["study"]))}
    for each, (title, correct) in zip(axes, _PANELS.items(), strict=True):
        rows = content[(content["protocol"] == CORRECT) == correct]
        measured = rows[rows["measured"].notna()]
        each.plot([0, 100], [0, 100], color=style.muted, linewidth=0.7, zorder=1)
        for study, points in measured.groupby("study", sort=False):
            look = {
                **style.line(numbers[study]),
                "linestyle": "none",
                "alpha": 0.5,
                "markersize": 2.8,
                "markeredgewidth": 0,
            }
            each.plot(points["published"].astype(float), points["measured"], label=study, zorder=3, **look)
        each.set_title(title, loc="left", color=style.muted)
        each.set_xlabel("published (%)")
        each.text(0.97, 0.04, f"{len(measured)} of {len(rows)} measured", transform=each.transAxes, ha="right")
        each.set_aspect("equal")
    axes[0].set_ylabel("measured (%)")
    axes[0].set(xlim=(-2, 102), ylim=(-2, 102))
    style.legend(canvas)
    return canvas, content


def _published(path):
    """The rows with a number to compare; none where there are no cells yet."""
    import pandas as pd

    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    content = read_cells(path)
    return content[content["published"].notna() & content["metric"].map(_is_share)]


def _is_share(metric: str) -> bool:
    """Whether a metric like ``mean_accuracy(fog-?)`` is in percent or points."""
    name = metric.partition("(")[0].removeprefix("mean_")
    return measures.get(name).UNIT in ("%", "points")
