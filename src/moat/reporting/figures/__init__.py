"""Kinds of figures: one module each, whose file name is the ``kind`` in ``config/studies/*.yaml``.

A module has

- ``SHOWS``: a literal, what its lines are: ``lines`` (measured cells, as in a table), ``history`` (the history.csv of
  runs), ``probe`` (arrays that a probe took from a model, see ``config/probes.yaml``), or ``cells`` (no lines: the
  cells of all tables);
- ``draw(figure, frames, style)``, which returns a matplotlib figure and the DataFrame of what is drawn;
- if it reads evaluations, ``expect(figure, results)``, which announces what it will ask for.

The ``options`` in the study are the module's own; it refuses unknown ones.
"""

import csv
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.config import paths
from moat.config.grid import Figure, Line, Run
from moat.reporting.labels import SEPARATOR, shared_parts, without_shared
from moat.reporting.layout import replaced
from moat.reporting.results import Results
from moat.reporting.tables import not_run_reason, stand_ins


@dataclass(frozen=True)
class Frames:
    """What a figure is drawn from: the results, the attack settings of ``config/attacks.yaml``, the scale's YAML."""

    results: Results
    attacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scale: Mapping[str, Any] = field(default_factory=dict)

    def evaluated(self, line: Line) -> list[Run]:
        """The runs of a line that left behind what it shows; none where the line is not drawn."""
        return self.results.finished(line.cell)

    def failed_checks(self, line: Line) -> list[str]:
        if not line.cell.checks:
            return []
        failed = (check for run in self.evaluated(line) for check in self.results.failed_checks(run, line.cell.suite))
        return list(dict.fromkeys(failed))

    def probe(self, line: Line) -> dict[str, Any]:
        """The arrays of a line that is drawn, and under ``classes`` the names of the data set's classes."""
        run, name = self.evaluated(line)[0], line.cell.probe
        return {**self.results.probe(run, name), "classes": (self.results.probe_record(run, name) or {}).get("classes")}

    def labels(self, figure: Figure) -> list[str]:
        """A short label for each line, without what all lines share; says so where a check failed."""
        labels = without_shared([line.label for line in figure.lines])
        failed = [self.evaluated(line) and self.failed_checks(line) for line in figure.lines]
        return [f"{label} (unverified)" if bad else label for label, bad in zip(labels, failed, strict=True)]


def heading(figure: Figure) -> str:
    """What the labels of all lines share, e.g. data set and net; :meth:`Frames.labels` leaves it out."""
    return shared_parts([line.label for line in figure.lines])


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def get(kind: str) -> ModuleType:
    """The plug-in of a kind.

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    if kind not in names():
        raise ConfigError(unknown_name(kind, names(), what="kind of figure"))
    return importlib.import_module(f"{__name__}.{kind}")


def files(figure: Figure, results: Results) -> list[Path]:
    """Where a figure is drawn to: PNG, PDF and CSV."""
    base = results.file(paths.figure(results.scale, figure.study, figure.name))
    return [base.with_name(f"{base.name}.{suffix}") for suffix in paths.FIGURE_SUFFIXES]


def drawn_before(figure: Figure, results: Results) -> list[str]:
    """The labels of lines that the figure's files show but that cannot be drawn now, for lack of their probes.

    Probes may have been left out where the figure was copied to: drawn again there, it would lose these lines.
    """
    return [line.label for line in _lost(figure, results) if line.cell.probes]


def lost_lines(figure: Figure, results: Results) -> list[str]:
    """The labels of lines that the figure's files show and whose results are missing now; without those of probes."""
    return [line.label for line in _lost(figure, results) if not line.cell.probes]


def _lost(figure: Figure, results: Results) -> list[Line]:
    lacking = [line for line in figure.lines if line.cell.runs and not results.finished(line.cell)]
    *pictures, points = files(figure, results)
    if not lacking or not all(path.exists() for path in (*pictures, points)):
        return []
    with open(points, encoding="utf-8", newline="") as stream:
        shown = {row.get("label") for row in csv.DictReader(stream) if row.get("verdict") != "not-run"}
    return [line for line in lacking if line.label in shown]


def shows_something(figure: Figure, results: Results) -> bool:
    """Whether anything measured is drawn; of a figure of all cells, whether its data have a measured number."""
    if figure.lines:
        measured = any(not_run_reason(line.cell, results) is None for line in figure.lines)
        return measured or bool(drawn_before(figure, results))
    points = files(figure, results)[-1]
    if not points.exists():
        return False
    with open(points, encoding="utf-8", newline="") as stream:
        return any(row.get("measured") for row in csv.DictReader(stream))


def of_the_scale(figure: Figure) -> Figure:
    """The figure without the lines that its scale leaves out, for kinds that give each line a panel; all of them where
    the scale has none."""
    lines = tuple(line for line in figure.lines if line.cell.not_run is None)
    return replace(figure, lines=lines or figure.lines)


def notes(figure: Figure, results: Results, *, stale: bool = True) -> list[str]:
    """What a figure must say beside its caption: lines that are not drawn, stand-ins, failed checks.

    Args:
        stale: whether to name the lines that are stale.
    """
    frames, said = Frames(results), []
    reasons: dict[str, list[str]] = {}
    left_out = 0
    unverified: dict[str, list[str]] = {}
    before = drawn_before(figure, results)
    outdated_lines = [line.label for line in figure.lines if stale and any(map(results.stale, line.cell.each()))]
    for line in figure.lines:
        reason = not_run_reason(line.cell, results)
        if reason is not None and line.label not in before and reason == line.cell.not_run:
            left_out += 1
            continue
        if reason is not None and line.label not in before:
            reasons.setdefault(reason, []).append(line.label)
            continue
        said += [f"Stand-in: {replaced(stand_in)}." for stand_in in stand_ins(line.cell)]
        if failed := frames.failed_checks(line):
            unverified.setdefault(", ".join(failed), []).append(line.label)
        outdated = (probe for probe in line.cell.probes if results.is_probe_outdated(probe.run, probe.name))
        said += [f"Outdated: {line.label}: trained again since." for _ in outdated]
    said += [f"Unverified: {_named(figure, labels)}: {checks}." for checks, labels in unverified.items()]
    said += [f"Stale: {_named(figure, outdated_lines)}."] if outdated_lines else []
    said += [f"Drawn before: {_named(figure, before)}: the arrays of the probe are missing here."] if before else []
    missing = [f"Not drawn: {_named(figure, labels)}: {reason}." for reason, labels in reasons.items()]
    if left_out:
        missing.append(f"Not drawn: {left_out} of {len(figure.lines)} that are not part of scale {results.scale}.")
    said = missing + said
    return list(dict.fromkeys(said))


def check_options(figure: Figure, allowed: Collection[str]) -> None:
    """
    Raises:
        ConfigError: an option that the kind does not know; names the study's file.
    """
    for option in figure.options:
        if option not in allowed:
            where = f"config/studies/{figure.study}.yaml: {figure.name}: "
            raise ConfigError(where + unknown_name(option, allowed, what=f"option of {figure.kind}"))


def _named(figure: Figure, labels: Collection[str]) -> str:
    """``labels`` of the figure's lines in few words: a shared beginning alone, if all lines that have it are meant."""
    missing = set(labels)
    # The first part of a label, the first two, and so on.
    parts = {line.label: line.label.split(SEPARATOR) for line in figure.lines}
    beginnings = {label: [SEPARATOR.join(p[: count + 1]) for count in range(len(p))] for label, p in parts.items()}
    whole: dict[str, bool] = {}
    for label, heads in beginnings.items():
        for head in heads:
            whole[head] = whole.get(head, True) and label in missing
    shown = [next((head for head in beginnings[label] if whole[head]), label) for label in labels]
    shown = list(dict.fromkeys(shown))
    shared = shared_parts(shown)
    return (f"{shared}: " if shared else "") + ", ".join(without_shared(shown))
