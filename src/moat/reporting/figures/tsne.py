"""t-SNE of penultimate features, clean and attacked images of one model per row, coloured by class.

Source: van der Maaten and Hinton, Visualizing data using t-SNE, 2008; scikit-learn's Barnes-Hut implementation,
initialised with the principal components, on one thread, so that equal features give equal pictures. Each panel is an
embedding of its own: positions in two panels do not correspond.

Options: none.
"""

import numpy as np
import pandas as pd
import threadpoolctl
from sklearn.manifold import TSNE

from moat.config.grid import Figure
from moat.reporting.drawing import Line2D
from moat.reporting.figures import Frames, check_options, of_the_scale
from moat.reporting.style import Style
from moat.reporting.tables import not_run_reason

SHOWS = "probe"
_IMAGES = ("clean", "attacked")
_PERPLEXITY, _CLASSES = 30, 10
_COLUMNS = ["label", "images", "index", "class", "predicted", "x", "y"]


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points (DataFrame with label, images, index, class, predicted, x, y)."""
    check_options(figure, [])
    figure = of_the_scale(figure)
    probes = {line.label: frames.probe(line) for line in figure.lines if frames.evaluated(line)}
    parts = [part for label, probe in probes.items() for part in _embeddings(label, probe)]
    content = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)
    canvas, grid = style.new(len(figure.lines), 2, height=2.5, width=0.75 * style.page_width)
    for axes, line, label in zip(grid, figure.lines, frames.labels(figure), strict=True):
        for panel, images in zip(axes, _IMAGES, strict=True):
            points = content[(content["label"] == line.label) & (content["images"] == images)]
            style.picture(panel)
            for number, part in points[points["class"] < _CLASSES].groupby("class"):
                panel.scatter(part["x"], part["y"], 3.0, color=style.class_colour(number), linewidth=0, alpha=0.8)
            title = f"{label}, {images}"
            if points.empty:
                style.empty(panel, f"not run: {not_run_reason(line.cell, frames.results)}")
            else:
                title += f": {100 * (points['class'] == points['predicted']).mean():.0f} % correct"
            panel.set_title(title, loc="left", color=style.muted)
    # Larger markers than the figure's own.
    names = next((probe["classes"] for probe in probes.values()), [])[:_CLASSES]
    look = {"marker": "o", "markersize": 4, "linestyle": "none"}
    style.legend(
        canvas, {name: Line2D([], [], color=style.class_colour(number), **look) for number, name in enumerate(names)}
    )
    return canvas, content


def _embeddings(label: str, arrays):
    """The points of clean and of attacked images."""
    for images in _IMAGES:
        places = embed(arrays[images])
        columns = {"label": label, "images": images, "index": range(len(places)), "class": arrays["label"]}
        columns |= {"predicted": arrays[f"{images}_predicted"], "x": places[:, 0], "y": places[:, 1]}
        yield pd.DataFrame(columns, columns=_COLUMNS)


def embed(features: np.ndarray) -> np.ndarray:
    """Positions (N, 2) of features (N, D); with few images, at the largest perplexity that is possible."""
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    with threadpoolctl.threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(features)
