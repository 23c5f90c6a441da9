"""How every figure looks: sizes in inches, a palette safe for colour-blind readers, equal files for equal content.

Colours: Okabe and Ito, "Color Universal Design", without yellow (poor contrast on white) and black (the axes).
"""

import io
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moat.base.files import write_bytes, write_text
from moat.reporting.drawing import Figure, Line2D, LogFormatter, Text, matplotlib

COLUMN_WIDTH, PAGE_WIDTH = 3.5, 7.16
DPI = 300
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Ten that people can tell apart. Petroff, Accessible Color Sequences for Data Visualization, arXiv 2107.02270.
_CLASS_COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_HATCHES = ("", "////", "....", "xxxx")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "moat",
}

# Of a message in the middle of a panel.
_CHARACTERS_PER_INCH = 13

# Follows the label of a series of which nothing was run.
NOT_RUN = " (not run)"


@dataclass(frozen=True)
class Style:
    """What a figure's module draws with."""

    column_width: float = COLUMN_WIDTH
    page_width: float = PAGE_WIDTH
    band_alpha: float = 0.16
    muted: str = "#666666"

    def line(self, number: int) -> dict:
        """Keywords of ``plot`` for the n-th line: colour, marker and dash all differ."""
        return {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _DASHES[number % len(_DASHES)],
        }

    def bar(self, number: int) -> dict:
        """Keywords of ``bar`` for the n-th series of bars: colours first, then the same ones hatched."""
        again = number // len(_COLOURS)
        return {
            "facecolor": _COLOURS[number % len(_COLOURS)],
            "hatch": _HATCHES[again % len(_HATCHES)],
            "edgecolor": "white",
            "linewidth": 0.4,
        }

    @property
    def published_marker(self) -> dict:
        """Keywords of ``plot`` for a published number; it takes the colour of the measured one."""
        return {
            "marker": "D",
            "markersize": 3.6,
            "markerfacecolor": "white",
            "markeredgewidth": 0.9,
            "linestyle": "none",
        }

    def published(self) -> dict:
        """The legend entry for hollow markers."""
        return {"published (hollow)": Line2D([], [], color=self.muted, **self.published_marker)}

    def colour(self, number: int) -> str:
        return _COLOURS[number % len(_COLOURS)]

    def class_colour(self, number: int) -> str:
        """One of ten colours for the classes of a data set."""
        return _CLASS_COLOURS[number % len(_CLASS_COLOURS)]

    def new(self, rows: int = 1, columns: int = 1, *, width: float | None = None, height: float = 2.5, **layout):
        """An empty matplotlib figure and its axes (rows x columns), bound to no window.

        ``height``: of one row, in inches; ``layout``: of matplotlib's ``subplots``.
        """
        width = width or (self.column_width if columns == 1 else self.page_width)
        figure = Figure(figsize=(width, rows * height))
        figure.set_layout_engine("constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **layout)

    def empty(self, axes, text: str) -> None:
        """Say why nothing measured is drawn: in the middle of the axes, or above published numbers."""
        if axes.has_data():
            # Why is in the caption: a panel of four is too narrow for it.
            axes.set_title("published only", loc="right", fontsize=6, color=self.muted)
            return
        inches = axes.get_position().width * axes.figure.get_figwidth()
        text = "\n".join(textwrap.wrap(text, max(10, int(_CHARACTERS_PER_INCH * inches))))
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=self.muted)

    def picture(self, axes) -> None:
        """Axes that show an image or positions without units: a thin frame and no ticks."""
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        axes.spines[:].set(visible=True, linewidth=0.5, color="#999999")

    def seeds(self, axes, rows: pd.DataFrame, column: str, *, label: str, **look) -> None:
        """The mean of a column over the seeds against the epoch; a band from the lowest to the highest of several."""
        grouped = rows.groupby("epoch")[column]
        axes.plot(grouped.mean().index, grouped.mean(), label=label, zorder=3, **look)
        if rows["seed"].nunique() > 1:
            band = {"color": look["color"], "alpha": self.band_alpha, "linewidth": 0, "zorder": 2}
            axes.fill_between(grouped.mean().index, grouped.min(), grouped.max(), **band)

    def legend(self, figure, extra: Mapping[str, Any] | None = None) -> None:
        """Below the axes, where it covers no line; one entry per label, and ``extra`` ones.

        Of a label that several panels have, the entry is a line where one of them draws one, rather than a marker.
        """
        entries: dict[str, Any] = {}
        for axes in figure.axes:
            handles, labels = axes.get_legend_handles_labels()
            for handle, label in zip(handles, labels, strict=True):
                if label not in entries or _is_marker(entries[label]):
                    entries[label] = handle
        # What is drawn in one panel and not run in another is in the legend once.
        for label in [label for label in entries if label.endswith(NOT_RUN) and label.removesuffix(NOT_RUN) in entries]:
            del entries[label]
        entries.update(extra or {})
        if entries:
            # How many entries of up to so many characters fit side by side.
            columns = max(1, int(figure.get_figwidth() / (0.55 + 0.057 * max(map(len, entries)))))
            figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def _is_marker(handle) -> bool:
    """Whether a legend's entry is a marker without a line, as of published numbers alone."""
    return isinstance(handle, Line2D) and handle.get_linestyle().lower() == "none"


@contextmanager
def applied() -> Iterator[Style]:
    """Draw with the project's settings whatever the user's matplotlibrc says, and without a display."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield Style()


def _print_dollars(figure) -> None:
    """Titles and labels are text, in which ``$`` starts no formula; only the numbers of a logarithmic axis are one."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    logarithmic = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    formulas = {id(text) for axis in logarithmic for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if id(text) not in formulas:
            text.set_parse_math(False)


def save(figure, content: pd.DataFrame, base: Path, *, title: str) -> list[Path]:
    """Write ``<base>.png`` (300 dpi), ``.pdf`` (vector) and ``.csv`` (what is drawn), without dates."""
    metadata = {
        "png": {"Software": "moat", "Title": title},
        "pdf": {"Creator": "moat", "Producer": "moat", "Title": title, "CreationDate": None, "ModDate": None},
    }
    written = []
    _print_dollars(figure)
    for suffix, fields in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=fields)
        written.append(base.with_name(f"{base.name}.{suffix}"))
        write_bytes(written[-1], buffer.getvalue())
    written.append(base.with_name(f"{base.name}.csv"))
    write_text(written[-1], content.to_csv(index=False, lineterminator="\n"))
    return written
