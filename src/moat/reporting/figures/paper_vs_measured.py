"""Every published number against the measured one: a point on the diagonal is reproduced.

Left the correct protocol, right the replicas of the protocols that may explain a number. Numbers in percent or points
only. It has no lines: it is drawn from the cells of all tables. Options: none.
"""

import pandas as pd

from moat.config import paths
from moat.config.cell_spec import CORRECT
from moat.config.grid import Figure
from moat.config.grid_types import measure_of
from moat.reporting import measures
from moat.reporting.figures import Frames, check_options
from moat.reporting.style import Style
from moat.reporting.tables import COLUMNS, read_cells

SHOWS = "cells"
_PANELS = {"correct protocol": True, "replicas of the papers' protocols": False}
_POINTS = {"linestyle": "none", "alpha": 0.5, "markersize": 2.8, "markeredgewidth": 0}


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and the rows of ``cells.csv`` that have a published number in percent or points."""
    check_options(figure, [])
    path = frames.results.file(paths.cells(frames.results.scale))
    content = read_cells(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    content = content[content["published"].notna() & content["metric"].map(_is_percentage).astype(bool)]
    canvas, (axes,) = style.new(columns=2, height=2.9, width=0.8 * style.page_width, sharex=True, sharey=True)
    papers = {study: frames.results.project.study(study).get("paper", study) for study in content["study"].unique()}
    numbers = {study: number for number, study in enumerate(dict.fromkeys(content["study"]))}
    for each, (title, correct) in zip(axes, _PANELS.items(), strict=True):
        rows = content[(content["protocol"] == CORRECT) == correct]
        measured = rows[rows["measured"].notna()]
        each.plot([0, 100], [0, 100], color=style.muted, linewidth=0.7, zorder=1)
        for study, points in measured.groupby("study", sort=False):
            look = {**style.line(numbers[study]), **_POINTS}
            each.plot(points["published"].astype(float), points["measured"], label=papers[study], zorder=3, **look)
        each.set_title(f"{title}:\n{len(measured)} of {len(rows)} measured", loc="left", color=style.muted)
        each.set_xlabel("published (%)")
        each.set_aspect("equal")
    axes[0].set_ylabel("measured (%)")
    axes[0].set(xlim=(-2, 102), ylim=(-2, 102))
    style.legend(canvas)
    return canvas, content


def _is_percentage(metric: str) -> bool:
    """Whether a metric such as ``mean_accuracy(fog-?)`` is in percent or points."""
    return measures.get(measure_of(metric)).unit in ("%", "points")
