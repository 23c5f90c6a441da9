"""The distribution of the weights of the probe's layer, a line per model; the right panel shows the tails.

Options: none.
"""

import numpy as np
import pandas as pd

from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options, heading
from moat.reporting.style import Style

SHOWS = "probe"
_BINS = 81
_COLUMNS = ["label", "dataset", "arch", "method", "seed", "low", "high", "count", "density", "std", "excess_kurtosis"]


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its histograms.

    Returns:
        (figure, DataFrame with label, dataset, arch, method, seed, low, high, count and density of each bin, and the
        standard deviation and excess kurtosis of all weights of the model).
    """
    check_options(figure, [])
    lines = [line for line in figure.lines if frames.evaluated(line)]
    weights = {line.label: frames.probe(line)["weights"].astype(np.float64).ravel() for line in lines}
    # The same bins for all models, symmetric, up to the largest weight.
    limit = max((float(np.abs(each).max()) for each in weights.values()), default=1.0)
    edges = np.linspace(-limit, limit, _BINS + 1)
    rows = [row for line in lines for row in _bins(line, weights[line.label], edges)]
    content = pd.DataFrame(rows, columns=_COLUMNS)
    canvas, (axes,) = style.new(columns=2, height=2.3)
    for number, (line, label) in enumerate(zip(figure.lines, frames.labels(figure), strict=True)):
        part = content[content["label"] == line.label]
        if part.empty:
            continue
        name = f"{label} (std {part['std'].iloc[0]:.3f}, excess kurtosis {part['excess_kurtosis'].iloc[0]:.1f})"
        look = {"color": style.colour(number), "linestyle": style.line(number)["linestyle"], "linewidth": 1.1}
        for each in axes:
            each.stairs(part["density"], [*part["low"], part["high"].iloc[-1]], label=name, **look)
    for each in axes:
        each.set_xlabel("weight")
        if content.empty:
            style.empty(each, "not run")
    axes[0].set_ylabel("density")
    axes[0].set_title(heading(figure), loc="left", color=style.muted)
    axes[1].set_yscale("log")
    axes[1].set_title("the same, logarithmic", loc="left", color=style.muted)
    style.legend(canvas)
    return canvas, content


def _bins(line, weights: np.ndarray, edges: np.ndarray):
    cell, counts = line.cell, np.histogram(weights, edges)[0]
    standard = (weights - weights.mean()) / max(weights.std(), 1e-12)
    place = {"dataset": cell.dataset, "arch": cell.arch, "method": cell.method, "label": line.label}
    moments = {"std": weights.std(), "excess_kurtosis": (standard**4).mean() - 3}
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        density = count / len(weights) / (high - low)
        yield {**place, "seed": cell.seeds[0], **moments, "low": low, "high": high, "count": count, "density": density}
