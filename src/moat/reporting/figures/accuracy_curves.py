"""A measured number against a parameter of the attack, one line per model; published numbers as hollow markers.

Options:
    along: the axis whose points lie on one line.
    x: the parameter of the attack settings on the x axis: ``eps`` (default) or ``steps``.
    panel: an axis, or dataset, arch, method or protocol: one panel for each (default: one panel).
    protocols: whether to draw the alternative protocols, too (default: false); goes with ``panel: protocol``.
    titles: protocol -> title of its panel.
    highlight: labels of the lines that are drawn thick.
"""

from moat.base.errors import ConfigError
from moat.base.numbers import parse_number
from moat.config.cell_spec import CORRECT
from moat.config.grid import Figure
from moat.reporting.figures import Frames, _cells, check_options
from moat.reporting.style import Style
from moat.reporting.tables import distrusted

SHOWS = "lines"
expect = _cells.expect
_X = {"eps": "epsilon", "steps": "number of steps"}


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points.

    Returns:
        (figure, DataFrame of :func:`moat.reporting.figures._cells.content` with the column x).
    """
    check_options(figure, ["along", "x", "panel", "protocols", "titles", "highlight"])
    content = _cells.content(figure, frames)
    content.insert(1, "x", content["label"].map(_positions(figure, frames)))
    if not figure.options.get("protocols"):
        content = content[content["protocol"] == CORRECT]
    along, panel = (_cells.column(figure, name, content.columns) for name in ("along", "panel"))
    rows = _cells.add_series(content, [along, panel], panel=panel)
    parts = _cells.panels(rows, panel)
    canvas, (axes,) = style.new(columns=len(parts), height=2.9, sharey=True)
    in_doubt = rows.apply(lambda row: bool(distrusted(row)), axis=1)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(rows["series"]))}
    for each, (value, part) in zip(axes, parts, strict=True):
        for name, line in part.groupby("series", sort=False):
            # The same in every panel, so that the legend has it once.
            label = f"{name} (unverified)" if in_doubt[rows["series"] == name].any() else name
            weight = 2.0 if name in figure.options.get("highlight", []) else 0.9
            _draw_line(each, line.sort_values("x"), label, {**style.line(numbers[name]), "linewidth": weight}, style)
        title = figure.options.get("titles", {}).get(value, part["title"].iloc[0])
        each.set_title(title, loc="left", color=style.muted)
        each.set_xlabel(_X[figure.options.get("x", "eps")])
        if figure.options.get("x") == "steps":
            each.set_xticks(sorted(part["x"].unique()))
        if part["measured"].isna().all():
            style.empty(each, _cells.why_empty(part))
    axes[0].set_ylabel("accuracy (%)")
    axes[0].set_ylim(-2, 102)
    style.legend(canvas, style.published() if rows["published"].notna().any() else None)
    return canvas, content


def _positions(figure: Figure, frames: Frames) -> dict[str, float | None]:
    """label -> x of its point.

    Raises:
        ConfigError: no axis to draw along, an unknown parameter, or a setting without it; names the study's file.
    """
    where = f"config/studies/{figure.study}.yaml: {figure.name}"
    name = figure.options.get("x", "eps")
    if name not in _X:
        raise ConfigError(f"{where}: x: {name!r} is not allowed; {' or '.join(_X)}")
    if "along" not in figure.options:
        raise ConfigError(f"{where}: option along is missing; the axis whose points lie on one line")
    positions = {}
    for line in figure.lines:
        setting = frames.attacks.get(line.cell.patterns[0], {})
        if name not in setting and setting.get("attack") != "none":
            raise ConfigError(f"{where}: {line.label}: the setting {line.cell.patterns[0]!r} has no {name}")
        place = f"config/attacks.yaml: {line.cell.patterns[0]}"
        positions[line.label] = parse_number(setting.get(name, 0), where=place)
    return positions


def _draw_line(axes, line, label: str, look: dict, style: Style) -> None:
    measured, published = line[line["measured"].notna()], line[line["published"].notna()]
    if len(measured):
        axes.plot(measured["x"], measured["measured"], label=label, zorder=3, **look)
        bounds = measured["ci_low"].astype(float), measured["ci_high"].astype(float)
        axes.fill_between(measured["x"], *bounds, color=look["color"], alpha=style.band_alpha, linewidth=0, zorder=2)
    if len(published):
        hollow = {**look, "markerfacecolor": "white", "linestyle": "none", "markeredgewidth": 0.8}
        axes.plot(published["x"], published["published"], zorder=4, **hollow, label=None if len(measured) else label)
