"""One study at one scale: the product of its rows and columns, cell by cell."""

import fnmatch
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from moat.config import protocols, registries
from moat.config.cells import Cell, Figure, Line, Table
from moat.config.project import Project
from moat.config.schema import unknown_name
from moat.errors import ConfigError

# The columns of config/published/<study>.csv by which a number is found; an axis of that name binds one.
_PUBLISHED_KEYS = ("dataset", "arch", "method", "metric", "setting")

# What a point says about itself, not about what is measured.
_NOT_BOUND = ("label", "published", "unpublished")


class Expander:
    """Expands one study at one scale."""

    def __init__(self, project: Project, scale: str, study: str):
        self.project, self.study = project, study
        self.scale = project.scale(scale)
        self.scale_name = scale
        self.spec = project.study(study)
        self.seeds = tuple(self.spec["seeds"][: self.scale["max_seeds"]])
        self.published = project.published(study)

    def tables(self) -> Iterator[Table]:
        for name, spec in self.spec.get("tables", {}).items():
            rows, columns = _product(spec["rows"]), _product(spec["columns"])
            cells = tuple(
                self._cell(name, spec, row, column, self._published(name, spec, row, column))
                for row, column in itertools.product(rows, columns)
            )
            labels = tuple(map(self._label, rows)), tuple(map(self._label, columns))
            yield Table(self.study, name, spec["title"], spec["caption"], *labels, cells)

    def figures(self) -> Iterator[Figure]:
        for name, spec in self.spec.get("figures", {}).items():
            if spec["kind"] not in registries.figure_kinds():
                where = f"config/studies/{self.study}.yaml: figures.{name}.kind"
                raise ConfigError(f"{where}: " + unknown_name(spec["kind"], registries.figure_kinds(), what="kind"))
            settings = {"label": "", "settings": spec["settings"]}
            lines = tuple(
                Line(self._label(line), self._cell(name, spec, line, [("settings", settings)], (None, None)))
                for line in _product(spec["lines"])
            )
            yield Figure(
                self.study,
                name,
                spec["kind"],
                spec["title"],
                spec["caption"],
                spec["suite"],
                tuple(spec["settings"]),
                lines,
                spec.get("options", {}),
            )

    def _cell(self, table: str, spec, row, column, published) -> Cell:
        where = f"config/studies/{self.study}.yaml: {table}: {_label(row)} x {_label(column)}"
        bound: dict[str, Any] = {"suite": spec["suite"], "protocol": "correct"}
        for _, point in (*row, *column):
            bound.update({key: value for key, value in point.items() if key not in _NOT_BOUND})
        substitutes = self._substitute(bound)
        bound["settings"] = self._settings(bound, where)
        not_run = bound.get("not_run") or self._excluded(bound)
        if not_run is None:
            self._check_names(bound, where)
        return Cell(
            study=self.study,
            table=table,
            row=self._label(row),
            column=self._label(column),
            dataset=bound.get("dataset", ""),
            arch=bound.get("arch", ""),
            method=bound.get("method", ""),
            suite=bound["suite"],
            settings=tuple(bound.get("settings", ())),
            protocol=bound["protocol"],
            seeds=self.seeds,
            published=published[0],
            published_std=published[1],
            tolerance=self.spec["tolerance"],
            substitutes=substitutes,
            not_run=not_run,
            aggregate=bound.get("aggregate", "worst"),
        )

    def _settings(self, bound: Mapping[str, Any], where: str) -> list[str]:
        """The cell's settings, patterns such as ``fog-*`` replaced by those of the suite that they match."""
        found: list[str] = []
        for setting in bound.get("settings", ()):
            in_suite = self.project.suite(bound["suite"])["settings"] if "*" in setting else []
            matching = fnmatch.filter(in_suite, setting) if "*" in setting else [setting]
            if not matching:
                raise ConfigError(f"{where}: no setting of suite {bound['suite']!r} fits {setting!r}")
            found += matching
        return found

    def _label(self, points) -> str:
        """The points' labels; a stand-in is never printed as what it stands in for."""
        return " / ".join(filter(None, (self._shown(point) for _, point in points)))

    def _shown(self, point: Mapping[str, Any]) -> str:
        for kind, stand_ins in self.scale.get("substitute", {}).items():
            if point.get(kind) in stand_ins:
                return f"{stand_ins[point[kind]]} (for {point['label']})"
        return point["label"]

    def _substitute(self, bound: dict[str, Any]) -> tuple[tuple[str, str], ...]:
        """Put the scale's stand-ins into ``bound``; return what they replaced."""
        replaced = []
        for kind, stand_ins in self.scale.get("substitute", {}).items():
            original = bound.get(kind)
            if original in stand_ins:
                bound[kind] = stand_ins[original]
                replaced.append((kind, original))
        return tuple(replaced)

    def _excluded(self, bound: Mapping[str, Any]) -> str | None:
        for kind, allowed in self.scale.get("only", {}).items():
            if bound.get(kind) not in allowed:
                return f"the {kind} {bound.get(kind)} is not part of scale {self.scale_name}"
        return None

    def _check_names(self, bound: Mapping[str, Any], where: str) -> None:
        known = {
            "dataset": self.project.names("datasets"),
            "arch": registries.archs(),
            "method": self.project.names("methods"),
        }
        for kind in ("dataset", "arch", "method", "settings"):
            if not bound.get(kind):
                raise ConfigError(f"{where}: no {kind} given; name one in a point of rows or columns")
        for kind, names in known.items():
            if bound[kind] not in names:
                raise ConfigError(f"{where}: " + unknown_name(bound[kind], names, what=kind))
        in_suite = self.project.measured(bound["suite"])
        for setting in bound["settings"]:
            if setting not in in_suite:
                what = f"setting of suite {bound['suite']!r}"
                raise ConfigError(f"{where}: " + unknown_name(setting, in_suite, what=what))
        protocols.check_cell(bound["protocol"], bound["settings"], self.project.attacks(), where=where)

    def _published(self, table: str, spec, row, column) -> tuple[float | None, float | None]:
        """Value and standard deviation of the one published number that fits, or (None, None)."""
        if "published" not in spec:
            return None, None
        wanted = dict(spec["published"])
        for axis, point in (*row, *column):
            if axis in _PUBLISHED_KEYS:
                wanted[axis] = point["label"]
            wanted.update(point.get("published", {}))
        found = [entry for entry in self.published if all(entry.get(key) == value for key, value in wanted.items())]
        if len(found) > 1:
            raise ConfigError(
                f"config/published/{self.study}.csv: {len(found)} rows fit {table}: {_label(row)} x {_label(column)} "
                f"({wanted}); add a published: key to the point"
            )
        if not found and not any(point.get("unpublished") for _, point in (*row, *column)):
            raise ConfigError(
                f"config/published/{self.study}.csv: no row fits {table}: {_label(row)} x {_label(column)} ({wanted}); "
                "correct a label, or add unpublished: true to the point if the paper has no such number"
            )
        return (_number(found[0]["value"]), _number(found[0]["std"])) if found else (None, None)


def _product(axes) -> list[list[tuple[str, Mapping[str, Any]]]]:
    """The product of axes, the first one slowest: each element is [(axis name, point), …]."""
    names = [axis["axis"] for axis in axes]
    return [list(zip(names, points, strict=True)) for points in itertools.product(*(axis["points"] for axis in axes))]


def _label(points) -> str:
    return " / ".join(point["label"] for _, point in points if point["label"])


def _number(text: str) -> float | None:
    return float(text) if text else None
