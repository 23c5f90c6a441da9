"""Kinds of figures: one module each, its file name is the kind in ``config/studies/*.yaml``.

A module has ``draw(figure, frames, style)``, which returns a matplotlib figure and the DataFrame of what is drawn, and
may have ``expect(figure, results)``, which announces the accuracies that it will ask for. The study's
``options`` are the plug-in's own; it refuses those that it does not know.
"""

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from moat.config.grid import Figure, Line, Run
from moat.config.schema import unknown_name
from moat.errors import ConfigError
from moat.reporting.results import Results
from moat.reporting.tables import not_run_reason, stand_ins


@dataclass(frozen=True)
class Frames:
    """What a figure is made from: the results, and the attack settings of ``config/attacks.yaml``."""

    results: Results
    attacks: Mapping[str, Mapping[str, Any]]

    def evaluated(self, line: Line) -> list[Run]:
        """The runs of a line that are evaluated; none where the line is not drawn."""
        return [run for run in line.cell.runs if self.results.has_evaluation(run, line.cell.suite)]

    def failed_gates(self, line: Line) -> list[str]:
        failed = (gate for run in self.evaluated(line) for gate in self.results.failed_gates(run, line.cell.suite))
        return list(dict.fromkeys(failed))

    def labels(self, figure: Figure) -> list[str]:
        """A short label for each line: without what all lines share; says so where a gate failed."""
        _, labels = _shorten(figure)
        failed = [self.evaluated(line) and self.failed_gates(line) for line in figure.lines]
        return [f"{label} (unverified)" if bad else label for label, bad in zip(labels, failed, strict=True)]


def heading(figure: Figure) -> str:
    """What the labels of all lines share, e.g. data set and net; :meth:`Frames.labels` leaves it out."""
    return _shorten(figure)[0]


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(kind: str) -> ModuleType:
    """The plug-in of a kind.

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    if kind not in names():
        raise ConfigError(unknown_name(kind, names(), what="kind of figure"))
    return importlib.import_module(f"{__name__}.{kind}")


def notes(figure: Figure, results: Results) -> list[str]:
    """What a figure must say beside its caption: lines that are not drawn, stand-ins, failed gates."""
    frames, said = Frames(results, {}), []
    for line in figure.lines:
        reason = not_run_reason(line.cell, results)
        if reason is not None:
            said.append(f"Not drawn: {line.label}: {reason}.")
            continue
        said += [f"Stand-in: {_replaced(stand_in)}." for stand_in in stand_ins(line.cell)]
        failed = frames.failed_gates(line)
        said += [f"Unverified: {line.label}: {', '.join(failed)}."] if failed else []
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


def _shorten(figure: Figure) -> tuple[str, list[str]]:
    """(the parts that all labels share, each label without them)."""
    parts = [line.label.split(" / ") for line in figure.lines]
    if len(parts) < 2 or len({len(part) for part in parts}) > 1:
        return "", [line.label for line in figure.lines]
    shared = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    if all(shared):
        return "", [line.label for line in figure.lines]
    common = " / ".join(name for name, same in zip(parts[0], shared, strict=True) if same)
    labels = [" / ".join(n for n, same in zip(part, shared, strict=True) if not same) for part in parts]
    return common, labels


def _replaced(stand_in: str) -> str:
    kind, names = stand_in.split(" ", 1)
    original, replacement = names.split("->")
    return f"{kind} {replacement} in place of {original}"
