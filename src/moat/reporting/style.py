"""How every figure looks: sizes in inches, a colour-blind safe palette, files that are equal for equal content.

Colours: Okabe and Ito, "Color Universal Design", without yellow (poor contrast on white) and black (the axes).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moat.files import write_bytes, write_text

COLUMN_WIDTH, PAGE_WIDTH = 3.5, 7.16
DPI = 300
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
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
    "svg.hashsalt": "moat",
}


@dataclass(frozen=True)
class Style:
    """What a figure's plug-in draws with."""

    column_width: float = COLUMN_WIDTH
    page_width: float = PAGE_WIDTH
    band_alpha: float = 0.16
    muted: str = "#666666"

    def line(self, number: int) -> dict:
        """Keywords of ``plot`` for the line of this number: colour, marker and dash all differ."""
        return {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _DASHES[number % len(_DASHES)],
        }

    def new(self, columns: int = 1, *, width: float | None = None, height: float = 2.5):
        """An empty matplotlib figure and its axes, side by side; bound to no window."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width or (self.column_width if columns == 1 else self.page_width), height))
        figure.set_layout_engine("constrained")
        return figure, figure.subplots(1, columns, squeeze=False)[0]

    def legend(self, figure) -> None:
        """Below the axes, where it covers no line; one entry for each label."""
        entries = {}
        for axes in figure.axes:
            handles, labels = axes.get_legend_handles_labels()
            entries.update({label: handle for handle, label in zip(handles, labels, strict=True)})
        if entries:
            columns = _columns(figure.get_figwidth(), max(map(len, entries)))
            figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def _columns(width: float, characters: int) -> int:
    """How many legend entries of up to so many characters fit side by side, in inches."""
    return max(1, int(width / (0.55 + 0.057 * characters)))


@contextmanager
def applied() -> Iterator[Style]:
    """Draw with the project's settings whatever the user's matplotlibrc says, and without a display."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield Style()


def save(figure, content, base: Path, *, title: str) -> list[Path]:
    """Write ``<base>.png`` (300 dpi), ``.pdf`` (vector) and ``.csv`` (what is drawn), without dates."""
    metadata = {
        "png": {"Software": "moat", "Title": title},
        "pdf": {"Creator": "moat", "Producer": "moat", "Title": title, "CreationDate": None, "ModDate": None},
    }
    written = []
    for suffix, fields in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=fields)
        written.append(base.with_name(f"{base.name}.{suffix}"))
        write_bytes(written[-1], buffer.getvalue())
    written.append(base.with_name(f"{base.name}.csv"))
    write_text(written[-1], content.to_csv(index=False, lineterminator="\n"))
    return written
