"""Two numbers of each model against each other, a third as the size of its marker; the best trade-offs are joined.

Options:
    measure: the axis whose points are the numbers.
    x, y, size: labels of that axis. Larger is better for x and y; size is a cost.

Every point carries a number, which stands on no other one; the list beside the axes names its model, beginning with
those that no other beats in both numbers.
"""

import math
import textwrap

import pandas as pd

from moat.base.errors import ConfigError, unknown_name
from moat.config.cell_spec import CORRECT
from moat.config.grid import Figure
from moat.reporting.figures import Frames, _cells, check_options
from moat.reporting.formatting import quantity
from moat.reporting.style import Style
from moat.reporting.tables import distrusted

SHOWS = "lines"
expect = _cells.expect
_ROLES = ("x", "y", "size")
# Areas of markers, in square points.
_LARGEST = 190.0
_SMALLEST = 7.0


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points.

    Returns:
        (figure, DataFrame with one row per model: number in the figure, label, best (no other is better in both),
        and for each of x, y and size its name, measured, ci_low, ci_high, verdict, checks_failed and reason).
    """
    check_options(figure, ["measure", *_ROLES])
    points = _points(figure, frames)
    drawn = points[points["number"].notna()]
    canvas, ((axes, listing),) = style.new(columns=2, height=3.6, width=style.page_width, width_ratios=[2.4, 1])
    _draw_points(axes, drawn, style)
    axes.set_xlabel(f"{figure.options['x']} (%)")
    axes.set_ylabel(f"{figure.options['y']} (%)")
    if len(drawn):
        _draw_sizes(axes, drawn, figure.options["size"], style)
    else:
        style.empty(axes, f"not run: {points['x_reason'].dropna().iloc[0]}")
    listing.set_axis_off()
    listing.grid(False)
    for position, (_, point) in enumerate(drawn.iterrows()):
        text = textwrap.shorten(f"{point['number']}  {point['label']}", 36, placeholder="…")
        colour = style.colour(0) if point["best"] else "#333333"
        height = 1 - (position + 0.5) / max(len(drawn), 18)
        listing.text(0.0, height, text, color=colour, fontsize=6.4, va="center")
    canvas.draw_without_rendering()
    _number_points(axes, drawn)
    return canvas, points


def _points(figure: Figure, frames: Frames) -> pd.DataFrame:
    """One row per model, the drawn ones numbered: the best ones first, and by descending y."""
    content = _cells.content(figure, frames)
    content = content[content["protocol"] == CORRECT]
    measure = _cells.column(figure, "measure", content.columns)
    known = list(dict.fromkeys(content[measure])) if measure else []
    for role in _ROLES:
        if figure.options.get(role) not in known:
            where = f"config/studies/{figure.study}.yaml: {figure.name}: {role}: "
            raise ConfigError(where + unknown_name(figure.options.get(role), known, what="label of measure"))
    rows = _cells.add_series(content, [measure], panel=None)
    values = ["measured", "ci_low", "ci_high", "verdict", "checks_failed", "reason"]
    parts = {
        role: rows[rows[measure] == figure.options[role]].set_index("series")[values].add_prefix(f"{role}_")
        for role in _ROLES
    }
    points = pd.concat(parts.values(), axis=1).rename_axis("label").reset_index()
    numeric = [f"{role}_{name}" for role in _ROLES for name in values[:3]]
    points[numeric] = points[numeric].astype(float)
    whole = points[[f"{role}_measured" for role in _ROLES]].notna().all(axis=1)
    points["best"] = _is_best(points["x_measured"].where(whole), points["y_measured"].where(whole))
    order = points[whole].sort_values(["best", "y_measured"], ascending=False).index
    points.insert(0, "number", pd.Series(range(1, len(order) + 1), order).reindex(points.index).astype("Int64"))
    return points.sort_values("number", kind="stable")


def _is_best(x, y) -> list[bool]:
    """Whether no other point is at least as good in both and better in one; a missing point (NaN) is not."""
    pairs = list(zip(x, y, strict=True))
    return [
        a == a and not any(c >= a and d >= b and (c > a or d > b) for c, d in pairs if c == c and d == d)
        for a, b in pairs
    ]


def _draw_points(axes, drawn: pd.DataFrame, style: Style) -> None:
    best = drawn[drawn["best"].astype(bool)].sort_values("x_measured")
    axes.plot(best["x_measured"], best["y_measured"], color=style.colour(0), linewidth=0.8, linestyle=":", zorder=1)
    area = _areas(drawn["size_measured"])
    for _, point in drawn.iterrows():
        colour, size = style.colour(0) if point["best"] else style.muted, area(point["size_measured"])
        face = "white" if distrusted({"checks_failed": point["y_checks_failed"]}) else colour
        place = point["x_measured"], point["y_measured"]
        yerr, xerr = (
            [
                [point[f"{role}_measured"] - point[f"{role}_ci_low"]],
                [point[f"{role}_ci_high"] - point[f"{role}_measured"]],
            ]
            for role in ("y", "x")
        )
        axes.errorbar(*place, yerr, xerr, color=colour, linewidth=0.5, alpha=0.6, zorder=2)
        axes.scatter(*place, size, facecolor=face, edgecolor=colour, alpha=0.75, zorder=3)
    axes.margins(0.08)
    axes.grid(True, axis="both")


def _number_points(axes, drawn: pd.DataFrame) -> None:
    """A number beside each point, on that side and as far away that it stands on no other number and no marker."""
    if drawn.empty:
        return
    area = _areas(drawn["size_measured"])
    # In points, as offsets are.
    spots = axes.transData.transform(drawn[["x_measured", "y_measured"]].to_numpy(float)) * 72 / axes.figure.dpi
    radii = [(area(size) / math.pi) ** 0.5 for size in drawn["size_measured"]]
    taken = [(x, y, radius, radius) for (x, y), radius in zip(spots, radii, strict=True)]
    for (_, point), (x, y), radius in zip(drawn.iterrows(), spots, radii, strict=True):
        number = str(point["number"])
        half = (1.9 * len(number), 2.6)
        around = [
            ((radius + gap + half[0]) * math.cos(angle), (radius + gap + half[1]) * math.sin(angle))
            for gap in (1, 4, 8, 13, 19, 26)
            for angle in (math.pi * eighth / 4 for eighth in (1, 0, 7, 3, 5, 2, 6, 4))
        ]
        free = (each for each in around if not any(_overlap((x + each[0], y + each[1], *half), box) for box in taken))
        dx, dy = next(free, around[0])
        taken.append((x + dx, y + dy, *half))
        look = {"ha": "center", "va": "center", "textcoords": "offset points", "fontsize": 6, "zorder": 4}
        if math.hypot(dx, dy) > radius + 10:
            look["arrowprops"] = {"arrowstyle": "-", "linewidth": 0.3, "color": "#888888", "shrinkA": 0, "shrinkB": 0}
        axes.annotate(number, (point["x_measured"], point["y_measured"]), (dx, dy), **look)


def _overlap(first: tuple, second: tuple) -> bool:
    """Whether two boxes (x and y of the middle, half width, half height) have points in common."""
    return abs(first[0] - second[0]) < first[2] + second[2] and abs(first[1] - second[1]) < first[3] + second[3]


def _areas(costs):
    largest = costs.max()
    return lambda cost: max(_SMALLEST, _LARGEST * cost / largest)


def _draw_sizes(axes, drawn: pd.DataFrame, name: str, style: Style) -> None:
    """Reference markers below the axes: the largest cost, a third and a tenth of it."""
    area, largest = _areas(drawn["size_measured"]), drawn["size_measured"].max()
    for cost in (largest, largest / 3, largest / 10):
        axes.scatter([], [], area(cost), facecolor="white", edgecolor=style.muted, label=quantity(cost))
    axes.scatter([], [], 12, facecolor="white", edgecolor=style.muted, label="hollow: a check failed")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, title=name, title_fontsize=7)
