"""Loss and validation accuracy over the epochs, one line per model; a band from the lowest to the highest seed.

Options: none. The validation accuracy is that of the recipe's ``validation:``, on images held out from training.
"""

from collections.abc import Sequence

from moat.config.grid import Figure, Line
from moat.reporting.figures import Frames, check_options, heading
from moat.reporting.style import Style

SHOWS = "history"
_PANELS = {"loss": "training loss", "validation_accuracy": "validation accuracy (%)"}


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points.

    Returns:
        (figure, DataFrame with label, dataset, arch, method, seed, epoch, lr, loss, validation_accuracy in
        percent points); one row per epoch and seed.
    """
    import pandas as pd

    check_options(figure, [])
    parts = [part for line in figure.lines for part in _histories(line, frames)]
    content = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)
    canvas, (axes,) = style.new(columns=2, height=2.4)
    labels = frames.labels(figure)
    for panel, (column, label) in zip(axes, _PANELS.items(), strict=True):
        for number, line in enumerate(figure.lines):
            _draw_line(panel, content[content["label"] == line.label], column, labels[number], style, number)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_title(heading(figure), loc="left", color=style.muted)
    axes[1].set_ylim(-2, 102)
    style.legend(canvas)
    return canvas, content


_COLUMNS = ["label", "dataset", "arch", "method", "seed", "epoch", "lr", "loss", "validation_accuracy"]


def _histories(line: Line, frames: Frames) -> Sequence:
    """history.csv of each evaluated run of a line, accuracy in percent points."""
    parts = []
    for run in frames.evaluated(line):
        history = (
            frames.results.history(run)
            .assign(label=line.label, dataset=run.dataset, arch=run.arch, method=run.method, seed=run.seed)
            .reindex(columns=_COLUMNS)
        )
        history["validation_accuracy"] = (100 * history["validation_accuracy"]).round(4)
        parts.append(history)
    return parts


def _draw_line(axes, rows, column: str, label: str, style: Style, number: int) -> None:
    rows = rows.dropna(subset=[column])
    if rows.empty:
        return
    grouped = rows.groupby("epoch")[column]
    mean, look = grouped.mean(), {**style.line(number), "marker": None}
    axes.plot(mean.index, mean, label=label, zorder=3, **look)
    if rows["seed"].nunique() > 1:
        low, high = grouped.min(), grouped.max()
        axes.fill_between(mean.index, low, high, color=look["color"], alpha=style.band_alpha, linewidth=0, zorder=2)
