"""t-SNE of penultimate features, clean and attacked images of one model per row, coloured by class.

Source: van der Maaten and Hinton, Visualizing data using t-SNE, 2008; scikit-learn's Barnes-Hut implementation, from
the principal components, on one thread, so that equal features give equal pictures. Each panel is an embedding of its
own: places in two panels do not correspond.

Options: ``perplexity`` (default: 30), ``seed`` (default: 0), ``classes``: draw only the first so many (default: 10).
"""

from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options
from moat.reporting.style import Style
from moat.reporting.tables import not_run_reason

SHOWS = "probe"
_IMAGES = ("clean", "attacked")
_COLUMNS = ["label", "images", "index", "class", "predicted", "x", "y"]


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points (DataFrame with label, images, index, class, predicted, x, y)."""
    import pandas as pd

    check_options(figure, ["perplexity", "seed", "classes"])
    probes = {line.label: frames.probe(line) for line in figure.lines if frames.evaluated(line)}
    parts = [part for label, probe in probes.items() for part in _embeddings(label, probe, figure)]
    content = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)
    rows = len(figure.lines)
    canvas, grid = style.new(rows, 2, height=2.5, width=0.75 * style.page_width)
    for axes, line, label in zip(grid, figure.lines, frames.labels(figure), strict=True):
        for panel, images in zip(axes, _IMAGES, strict=True):
            points = content[(content["label"] == line.label) & (content["images"] == images)]
            names = probes[line.label]["classes"] if line.label in probes else []
            _draw_points(panel, points, names[: figure.options.get("classes", 10)], style)
            panel.set_title(_title(label, images, points), loc="left", color=style.muted)
            if points.empty:
                style.empty(panel, f"not run: {not_run_reason(line.cell, frames.results)}")
    style.legend(canvas, _legend(probes, figure, style))
    return canvas, content


def _legend(probes, figure: Figure, style: Style):
    """Larger markers than the figure's own."""
    from matplotlib.lines import Line2D

    names = next((probe["classes"] for probe in probes.values()), [])[: figure.options.get("classes", 10)]
    look = {"marker": "o", "markersize": 4, "linestyle": "none"}
    return {name: Line2D([], [], color=style.class_colour(number), **look) for number, name in enumerate(names)}


def _embeddings(label: str, arrays, figure: Figure):
    """The points of clean and of attacked images."""
    import pandas as pd

    for images in _IMAGES:
        places = embed(
            arrays[images], perplexity=figure.options.get("perplexity", 30), seed=figure.options.get("seed", 0)
        )
        columns = {"label": label, "images": images, "index": range(len(places)), "class": arrays["label"]}
        columns |= {"predicted": arrays[f"{images}_predicted"], "x": places[:, 0], "y": places[:, 1]}
        yield pd.DataFrame(columns, columns=_COLUMNS)


def embed(features, *, perplexity: float, seed: int):
    """Places (N, 2) of features (N, D); where there are few images, with the largest perplexity that is possible."""
    import threadpoolctl
    from sklearn.manifold import TSNE

    perplexity = min(perplexity, (len(features) - 1) / 3)
    with threadpoolctl.threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(features)


def _draw_points(axes, points, classes: list[str], style: Style) -> None:
    style.picture(axes)
    for number in range(len(classes)):
        part = points[points["class"] == number]
        if len(part):
            axes.scatter(part["x"], part["y"], 3.0, color=style.class_colour(number), linewidth=0, alpha=0.8)


def _title(label: str, images: str, points) -> str:
    if points.empty:
        return f"{label}, {images}"
    return f"{label}, {images}: {100 * (points['class'] == points['predicted']).mean():.0f} % right"
