"""Robust accuracy against the radius of the attack, one line per model. Options: none."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from moat.base.errors import ConfigError
from moat.base.numbers import parse_number
from moat.config.grid import Figure, Line
from moat.reporting.figures import Frames, check_options, heading
from moat.reporting.intervals import summarise
from moat.reporting.results import Results
from moat.reporting.style import Style

SHOWS = "lines"
_COLUMNS = [
    *("label", "dataset", "arch", "method", "setting", "epsilon", "accuracy", "accuracy_std"),
    *("ci_low", "ci_high", "n", "seeds", "chance", "checks_failed"),
]


def expect(figure: Figure, results: Results) -> None:
    results.expect([line.cell for line in figure.lines], each_setting=True)


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its points.

    Returns:
        (figure, DataFrame with label, dataset, arch, method, setting, epsilon in pixel units, accuracy and
        its interval in percent points, n, seeds, chance, checks_failed).
    """
    check_options(figure, [])
    radii = {name: radius(frames.attacks[name], name) for name in figure.settings}
    radii = dict(sorted(radii.items(), key=lambda item: item[1]))
    drawn = [line for line in figure.lines if frames.evaluated(line)]
    content = pd.DataFrame([row for line in drawn for row in _points(line, radii, frames)], columns=_COLUMNS)
    canvas, ((axes,),) = style.new(height=2.8)
    for number, (line, label) in enumerate(zip(figure.lines, frames.labels(figure), strict=True)):
        if line in drawn:
            points, look = content[content["label"] == line.label], style.line(number)
            x = points["epsilon"].to_numpy() * 255
            faces = {"markerfacecolor": "white"} if points["checks_failed"].iloc[0] else {}
            axes.plot(x, points["accuracy"], label=label, zorder=3, **look, **faces)
            low, high = points["ci_low"].astype(float), points["ci_high"].astype(float)
            axes.fill_between(x, low, high, color=look["color"], alpha=style.band_alpha, linewidth=0, zorder=2)
    for number, chance in enumerate(sorted(content["chance"].dropna().astype(float).unique())):
        label = "chance level" if number == 0 else None
        axes.axhline(chance, color=style.muted, linewidth=0.8, linestyle=(0, (2, 2)), label=label, zorder=1)
    axes.set_title(heading(figure), loc="left", color=style.muted)
    # Linear up to the smallest radius, doubling from there.
    ticks = sorted({round(255 * value, 6) for value in radii.values()})
    if positive := [tick for tick in ticks if tick > 0]:
        axes.set_xscale("symlog", base=2, linthresh=min(positive), linscale=0.8)
        axes.set_xlim(-0.15 * min(positive), 1.12 * max(positive))
    axes.set_xticks(ticks, _tick_labels(axes, ticks))
    axes.minorticks_off()
    axes.set_xlabel("epsilon in units of 1/255")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(-2, 102)
    if not drawn:
        axes.text(0.5, 0.5, "nothing was run", transform=axes.transAxes, ha="center", color="#666666")
    style.legend(canvas)
    return canvas, content


def radius(setting: Mapping[str, Any], name: str) -> float:
    """Epsilon of an attack setting in pixel units; 0 without an attack.

    Raises:
        ConfigError: an attack without an epsilon.
    """
    if setting["attack"] == "none":
        return 0.0
    if "eps" not in setting:
        raise ConfigError(f"config/attacks.yaml: {name}: no eps; accuracy against epsilon needs one")
    return parse_number(setting["eps"], where=f"config/attacks.yaml: {name}: eps")


def _points(line: Line, radii: Mapping[str, float], frames: Frames) -> list[dict[str, Any]]:
    runs, cell = frames.evaluated(line), line.cell
    classes = (frames.results.run(runs[0]) or {}).get("num_classes")
    rows = []
    for setting, epsilon in radii.items():
        counts = [frames.results.counts(run, cell.suite, (setting,)) for run in runs]
        values = summarise(counts, where=f"{cell.study}-{cell.table}: {line.label}, {setting}")
        rows.append(
            {
                "label": line.label,
                "dataset": cell.dataset,
                "arch": cell.arch,
                "method": cell.method,
                "setting": setting,
                "epsilon": epsilon,
                "accuracy": values["measured"],
                "accuracy_std": values["measured_std"],
                "ci_low": values["ci_low"],
                "ci_high": values["ci_high"],
                "n": values["n"],
                "seeds": ";".join(str(run.seed) for run in runs),
                "chance": round(100 / classes, 4) if classes else None,
                "checks_failed": ";".join(frames.failed_checks(line)),
            }
        )
    return rows


def _tick_labels(axes, ticks: list[float]) -> list[str]:
    """A label for each tick, from the largest down, skipping those that would overlap the one to their right."""
    places = axes.xaxis.get_transform().transform(ticks)
    apart, labels, last = 0.055 * (max(places) - min(places)), [], None
    for tick, place in zip(reversed(ticks), reversed(places), strict=True):
        fits = last is None or last - place >= apart
        labels.append(f"{tick:.3g}" if fits else "")
        last = place if fits else last
    return labels[::-1]
