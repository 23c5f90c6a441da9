"""What a router does over the epochs: each expert's share of the images (or mean weight), and the router's entropy.

One column of panels per line; clean images dashed, attacked ones solid; with several seeds their mean, and a band from
the lowest to the highest. Options: none.
"""

import re

from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options
from moat.reporting.style import Style

SHOWS = "history"
_SHARE = re.compile(r"expert(\d+)_(?:load|weight)_(clean|adversarial)")
_ENTROPY = re.compile(r"router_entropy_(clean|adversarial)")
_DASHES = {"adversarial": "-", "clean": (0, (4, 1.5))}
_COLUMNS = ["label", "dataset", "arch", "method", "seed", "epoch", "what", "expert", "images", "value"]


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points.

    Returns:
        (figure, DataFrame with label, dataset, arch, method, seed, epoch, what (share or entropy), expert, images
        (clean or adversarial), value: a share from 0 to 1, or nats).
    """
    import pandas as pd

    check_options(figure, [])
    rows = [row for line in figure.lines for row in _rows(line, frames)]
    content = pd.DataFrame(rows, columns=_COLUMNS).astype({"expert": "Int64"})
    count = max(1, len(figure.lines))
    width = None if count == 1 else style.page_width
    canvas, grid = style.new(2, count, height=1.9, width=width, sharex="col", sharey="row")
    for axes, line, label in zip(grid.T, figure.lines, frames.labels(figure), strict=True):
        part = content[content["label"] == line.label]
        _draw_shares(axes[0], part[part["what"] == "share"], style)
        _draw_entropy(axes[1], part[part["what"] == "entropy"], style)
        axes[0].set_title(label, loc="left", color=style.muted)
        axes[1].set_xlabel("epoch")
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        if part.empty:
            style.empty(axes[0], "not trained yet" if not frames.evaluated(line) else "no router in its history")
    grid[0][0].set_ylabel("share of the images")
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
            share, entropy = _SHARE.fullmatch(name), _ENTROPY.fullmatch(name)
            if not (share or entropy):
                continue
            what = {"what": "share", "expert": int(share[1])} if share else {"what": "entropy", "expert": None}
            what["images"] = share[2] if share else entropy[1]
            for epoch, value in zip(history["epoch"], history[name], strict=True):
                yield {**place, **what, "epoch": epoch, "value": value}


def _draw_shares(axes, rows, style: Style) -> None:
    for (expert, images), part in rows.groupby(["expert", "images"]):
        _draw_mean(axes, part, style.colour(expert), _DASHES[images], f"expert {expert}, {images}", style)


def _draw_entropy(axes, rows, style: Style) -> None:
    for images, part in rows.groupby("images"):
        _draw_mean(axes, part, "#333333", _DASHES[images], f"entropy, {images}", style)


def _draw_mean(axes, part, colour: str, dashes, label: str, style: Style) -> None:
    grouped = part.groupby("epoch")["value"]
    mean = grouped.mean()
    axes.plot(mean.index, mean, color=colour, linestyle=dashes, linewidth=1.1, label=label)
    if part["seed"].nunique() > 1:
        axes.fill_between(mean.index, grouped.min(), grouped.max(), color=colour, alpha=style.band_alpha, linewidth=0)
