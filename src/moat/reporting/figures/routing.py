"""Where a router sends clean and attacked images: load per batch, and the distribution of each expert's weight.

One row of panels per line. Options:
    batch: images per batch of the left panel, in the test set's order (default: 100).
    scores: ``softmax`` (default) of the router's scores, or ``raw``.
"""

import numpy as np
import pandas as pd
from scipy.special import softmax

from moat.base.errors import ConfigError
from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options
from moat.reporting.labels import SEPARATOR
from moat.reporting.style import Style
from moat.reporting.tables import not_run_reason

SHOWS = "probe"
_IMAGES = ("clean", "attacked")
_COLUMNS = ["label", "what", "images", "expert", "low", "high", "value"]
_DASHES = {"clean": (0, (4, 1.5)), "attacked": "-"}
_BINS = 40


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and what its panels show.

    Returns:
        (figure, DataFrame with label, what (load or weight), images (clean or attacked), expert, low, high, value).
        A load is the fraction of the images low to high (in the test set's order) that was routed to the expert; a
        weight is the fraction of all images whose weight for the expert lies from low to high.
    """
    check_options(figure, ["batch", "scores"])
    rows = [row for line in figure.lines if frames.evaluated(line) for row in _rows(line, figure, frames)]
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


def _rows(line, figure: Figure, frames: Frames):
    """
    Raises:
        ConfigError: scores that are neither softmax nor raw.
    """
    kind, batch = figure.options.get("scores", "softmax"), figure.options.get("batch", 100)
    if kind not in ("softmax", "raw"):
        where = f"config/studies/{figure.study}.yaml: {figure.name}"
        raise ConfigError(f"{where}: scores: {kind!r} is not allowed; softmax or raw")
    arrays = frames.probe(line)
    for images in _IMAGES:
        scores = arrays[images] if kind == "raw" else softmax(arrays[images].astype(np.float64), axis=1)
        for name, values in (("load", _loads(scores, batch)), ("weight", _weights(scores))):
            for expert, low, high, value in values:
                place = {"label": line.label, "what": name, "images": images, "expert": expert}
                yield {**place, "low": low, "high": high, "value": value}


def _loads(scores: np.ndarray, batch: int):
    chosen = scores.argmax(1)
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        for expert in range(scores.shape[1]):
            yield expert, start, start + len(part), float((part == expert).mean())


def _weights(scores: np.ndarray):
    edges = np.linspace(min(0.0, scores.min()), max(1.0, scores.max()), _BINS + 1)
    for expert in range(scores.shape[1]):
        counts = np.histogram(scores[:, expert], edges)[0]
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            yield expert, low, high, count / len(scores)
