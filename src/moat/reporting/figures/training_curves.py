"""Loss and validation accuracy over the epochs, one line per model; a band from the lowest to the highest seed.

Options: none. The validation accuracy is that of the recipe's ``validation:`` on images held out from training, which
chooses the best epoch; of a net with a router, the per-example worst of both gradients.
"""

import pandas as pd

from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options, heading
from moat.reporting.style import Style

SHOWS = "history"
_PANELS = {"loss": "training loss", "validation_accuracy": "validation accuracy (%),\nclean or attacked"}
_COLUMNS = ["label", "dataset", "arch", "method", "seed", "epoch", "lr", "loss", "validation_accuracy"]


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points.

    Returns:
        (figure, DataFrame with label, dataset, arch, method, seed, epoch, lr, loss, validation_accuracy in
        percent points); one row per epoch and seed.
    """
    check_options(figure, [])
    parts = []
    for line in figure.lines:
        for run in frames.evaluated(line):
            place = {"label": line.label, "dataset": run.dataset, "arch": run.arch, "method": run.method}
            history = frames.results.history(run).assign(**place, seed=run.seed).reindex(columns=_COLUMNS)
            history["validation_accuracy"] = (100 * history["validation_accuracy"]).round(4)
            parts.append(history)
    content = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)
    canvas, (axes,) = style.new(columns=2, height=2.4)
    labels = frames.labels(figure)
    for panel, (column, title) in zip(axes, _PANELS.items(), strict=True):
        for number, (line, label) in enumerate(zip(figure.lines, labels, strict=True)):
            rows = content[content["label"] == line.label].dropna(subset=[column])
            if len(rows):
                style.seeds(panel, rows, column, label=label, **{**style.line(number), "marker": None})
        panel.set_xlabel("epoch")
        panel.set_ylabel(title)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_title(heading(figure), loc="left", color=style.muted)
    axes[1].set_ylim(-2, 102)
    style.legend(canvas)
    return canvas, content
