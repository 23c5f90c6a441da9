"""Where a router sends clean and attacked images: load per batch, and the distribution of each expert's weight.

One row of panels per line; batches of 100 images, in the test set's order. Options: none.
"""

import numpy as np
import pandas as pd
from scipy.special import softmax

from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options, of_the_scale
from moat.reporting.labels import SEPARATOR
from moat.reporting.style import Style
from moat.reporting.tables import not_run_reason

SHOWS = "probe"
_IMAGES = ("clean", "attacked")
_COLUMNS = ["label", "what", "images", "expert", "low", "high", "value"]
_DASHES = {"clean": (0, (4, 1.5)), "attacked": "-"}
BATCH, BINS = 100, 40


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and what its panels show.

    Returns:
        (figure, DataFrame with label, what (load or weight), images (clean or attacked), expert, low, high, value).
        A load is the fraction of the images low to high (in the test set's order) that was routed to the expert; a
        weight is the fraction of all images whose weight for the expert lies from low to high.
    """
    check_options(figure, [])
    figure = of_the_scale(figure)
    rows = [row for line in figure.lines if frames.evaluated(line) for row in _rows(line, frames)]
    content = pd.DataFrame(rows, columns=_COLUMNS)
    canvas, grid = style.new(len(figure.lines), 3, height=2.2, width=style.page_width)
    for axes, line in zip(grid, figure.lines, strict=True):
        part = content[content["label"] == line.label]
        for (expert, images), loads in part[part["what"] == "load"].groupby(["expert", "images"]):
            look = {"color": style.colour(expert), "linewidth": 1.1, "linestyle": _DASHES[images]}
            edges = [*loads["low"], loads["high"].iloc[-1]]
            axes[0].stairs(loads["value"], edges, label=f"expert {expert}, {images}", baseline=None, **look)
        axes[0].set_title("load", loc="left", color=style.muted)
        axes[0].set_ylim(-0.02, 1.02)
        axes[0].set_xlabel("test images, in batches")
        axes[0].set_ylabel(f"{line.label.split(SEPARATOR)[-1]}\nfraction of the batch")
        for panel, images in zip(axes[1:], _IMAGES, strict=True):
            for expert, weights in part[(part["what"] == "weight") & (part["images"] == images)].groupby("expert"):
                edges, colour = [*weights["low"], weights["high"].iloc[-1]], style.colour(expert)
                panel.stairs(weights["value"], edges, fill=True, alpha=0.35, color=colour)
                panel.stairs(weights["value"], edges, color=colour, linewidth=0.9)
            panel.set_title(f"weights on {images} images", loc="left", color=style.muted)
            panel.set_xlabel("weight")
            panel.set_ylabel("fraction of the images")
        if part.empty:
            style.empty(axes[0], f"not run: {not_run_reason(line.cell, frames.results)}")
    style.legend(canvas)
    return canvas, content


def _rows(line, frames: Frames):
    arrays = frames.probe(line)
    for images in _IMAGES:
        scores = softmax(arrays[images].astype(np.float64), axis=1)
        for name, values in (("load", _loads(scores)), ("weight", _weights(scores))):
            for expert, low, high, value in values:
                place = {"label": line.label, "what": name, "images": images, "expert": expert}
                yield {**place, "low": low, "high": high, "value": value}


def _loads(scores: np.ndarray):
    chosen = scores.argmax(1)
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        for expert in range(scores.shape[1]):
            yield expert, start, start + len(part), float((part == expert).mean())


def _weights(scores: np.ndarray):
    edges = np.linspace(0, 1, BINS + 1)
    for expert in range(scores.shape[1]):
        counts = np.histogram(scores[:, expert], edges)[0]
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            yield expert, low, high, count / len(scores)
