"""A router over the epochs: each expert's fraction of the images (or mean weight), and the router's entropy.

One column of panels per line; clean images dashed, attacked ones solid; with several seeds their mean, and a band from
the lowest to the highest. Options: none.
"""

import re

import pandas as pd

from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options, of_the_scale
from moat.reporting.style import Style

SHOWS = "history"
_FRACTION = re.compile(r"expert(\d+)_(?:load|weight)_(clean|adversarial)")
_ENTROPY = re.compile(r"router_entropy_(clean|adversarial)")
_DASHES = {"adversarial": "-", "clean": (0, (4, 1.5))}
_COLUMNS = ["label", "dataset", "arch", "method", "seed", "epoch", "what", "expert", "images", "value"]


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points.

    Returns:
        (figure, DataFrame with label, dataset, arch, method, seed, epoch, what (fraction or entropy), expert, images
        (clean or adversarial), value: a fraction from 0 to 1, or nats).
    """
    check_options(figure, [])
    figure = of_the_scale(figure)
    rows = [row for line in figure.lines for row in _rows(line, frames)]
    content = pd.DataFrame(rows, columns=_COLUMNS).astype({"expert": "Int64"})
    count = max(1, len(figure.lines))
    width = None if count == 1 else style.page_width
    canvas, grid = style.new(2, count, height=1.9, width=width, sharex="col", sharey="row")
    for axes, line, label in zip(grid.T, figure.lines, frames.labels(figure), strict=True):
        part = content[content["label"] == line.label]
        for (expert, images), points in part[part["what"] == "fraction"].groupby(["expert", "images"]):
            look = {"color": style.colour(expert), "linestyle": _DASHES[images], "linewidth": 1.1}
            style.seeds(axes[0], points, "value", label=f"expert {expert}, {images}", **look)
        for images, points in part[part["what"] == "entropy"].groupby("images"):
            look = {"color": "#333333", "linestyle": _DASHES[images], "linewidth": 1.1}
            style.seeds(axes[1], points, "value", label=f"entropy, {images}", **look)
        axes[0].set_title(label, loc="left", color=style.muted)
        axes[1].set_xlabel("epoch")
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        if part.empty:
            style.empty(axes[0], "not trained yet" if not frames.evaluated(line) else "no router in its history")
    grid[0][0].set_ylabel("fraction of the images")
    grid[0][0].set_ylim(-0.02, 1.02)
    grid[1][0].set_ylabel("router entropy (nats)")
    grid[1][0].set_ylim(bottom=0)
    style.legend(canvas)
    return canvas, content


def _rows(line, frames: Frames):
    for run in frames.evaluated(line):
        history = frames.results.history(run)
        place = {"label": line.label, "dataset": run.dataset, "arch": run.arch, "method": run.method, "seed": run.seed}
        for name in history.columns:
            if fraction := _FRACTION.fullmatch(name):
                what = {"what": "fraction", "expert": int(fraction[1]), "images": fraction[2]}
            elif entropy := _ENTROPY.fullmatch(name):
                what = {"what": "entropy", "expert": None, "images": entropy[1]}
            else:
                continue
            for epoch, value in zip(history["epoch"], history[name], strict=True):
                yield {**place, **what, "epoch": epoch, "value": value}
