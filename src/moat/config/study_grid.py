"""One study at one scale: the product of its rows and columns, cell by cell."""

import fnmatch
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moat.base import plugins
from moat.base.errors import ConfigError, unknown_name
from moat.config import corruptions, recipes
from moat.config.cell_spec import (
    CORRECT,
    Points,
    bind,
    check_matches,
    check_protocol,
    expand_settings,
    under_alternative,
    with_last_epoch,
    with_twins,
)
from moat.config.grid_types import Cell, Figure, Line, Table
from moat.config.project import Project
from moat.config.published import NOTHING, Published, PublishedNumbers, wanted_columns

# What is measured on the lines of a figure unless they say so, by what its kind shows.
_MEASURES = {"lines": "accuracy", "history": "history", "probe": "probe", "cells": ""}


class Expander:
    """Expands one study at one scale."""

    def __init__(self, project: Project, scale: str, study: str, *, whole: bool = False):
        """``whole``: also what the scale does not show: excluded tables, rows and columns of what it does not have."""
        self.project, self.study = project, study
        self.scale = project.scale(scale)
        if whole:
            excluded = {kind: names for kind, names in self.scale.get("exclude", {}).items() if kind != "item"}
            self.scale = {**self.scale, "show_not_run": True, "exclude": excluded}
        self.scale_name = scale
        self.spec = project.study(study)
        self.numbers = PublishedNumbers(study, project.published(study))
        self.names = {
            "dataset": project.names("datasets"),
            "arch": plugins.archs(),
            "method": project.names("methods"),
        }
        self.simplest = functools.cache(functools.partial(recipes.simplest, project, scale))
        self.max_seeds: dict[str, int] = {}
        for name, number in self.scale.get("seeds", {}).items():
            self.max_seeds[self.simplest(name)] = max(number, self.max_seeds.get(self.simplest(name), 0))
        self.included = {**self.scale.get("include", {})}
        if "method" in self.included:
            self.included["method"] = [self.simplest(name) for name in self.included["method"]]
        self.suites = {name: tuple(project.measured(name)) for name in project.suites()}
        self.attacks = {**corruptions.all_settings(), **project.attacks()}

    @functools.cache  # noqa: B019 - one lives as long as its grid is built
    def is_mixture(self, method: str) -> bool:
        recipe = recipes.resolve_recipe(self.project, self.scale_name, method)
        return plugins.mixture_of(recipe["class"], recipe.get("model", {})) is not None

    def tables(self) -> Iterator[Table]:
        for name, spec in self.spec.get("tables", {}).items():
            check_matches(spec, f"config/studies/{self.study}.yaml: {name}")
            rows, rows_left_out = self._part_of_scale(spec["rows"], "rows")
            columns, columns_left_out = self._part_of_scale(spec["columns"], "columns")
            if not (rows and columns and self._has("item", f"{self.study}-{name}")):
                continue
            rows, of_rows = self._with_last_epochs(rows, spec, "rows")
            columns, of_columns = self._with_last_epochs(columns, spec, "columns")
            cells = tuple(self._cell(name, spec, row, column) for row, column in itertools.product(rows, columns))
            labels = tuple(map(self._label, rows)), tuple(map(self._label, columns))
            caption = " ".join(filter(None, [spec["caption"], of_rows, of_columns, rows_left_out, columns_left_out]))
            yield Table(self.study, name, spec["title"], caption, *labels, cells)

    def _part_of_scale(self, axes: Sequence[Mapping[str, Any]], what: str) -> tuple[list[Points], str]:
        """Rows, columns or lines of a figure, and what the caption says of those that are left out.

        All of them, unless the scale's ``show_not_run`` is false: then those that the scale has.
        """
        lines = _product(axes)
        if self.scale.get("show_not_run", True):
            return lines, ""
        found = [line for line in lines if self._is_included(line)]
        left_out = len(lines) - len(found)
        return found, f"Not part of this scale and left out: {left_out} of {len(lines)} {what}." if left_out else ""

    def _with_last_epochs(self, lines: list[Points], spec: Mapping[str, Any], side: str) -> tuple[list[Points], str]:
        """The rows or columns of a table, those that show the last epoch included, and what the caption says of these.

        A last epoch is shown where the table wants it and the scale's ``last_epoch`` is true or names the method.
        """
        match = spec.get("last_epoch", {}).get("match")
        if match is None or not match.keys() <= {axis["axis"] for axis in spec[side]}:
            return lines, ""
        asked = self.scale.get("last_epoch", False)
        asked = asked if isinstance(asked, bool) else {self.simplest(method) for method in asked}
        found, wanted, shown = [], 0, []
        for line in lines:
            found.append(line)
            last = with_last_epoch(line, match)
            if last is None or not self._is_included(line):
                continue
            wanted += 1
            methods = {self.simplest(point["method"]) for _, point in line if "method" in point}
            if asked is True or (asked and methods & asked):
                found.append(last)
                shown.append(self._label(line))
        if wanted and not shown:
            return found, "The weights of the last epoch were not evaluated at this scale."
        if not shown:
            return found, ""
        only = "" if len(shown) == wanted else f" At this scale they were evaluated for {', '.join(shown)} only."
        return found, f"Last epoch: the weights at the end of the training instead of those of the best epoch.{only}"

    def _is_included(self, line: Points) -> bool:
        """Whether the scale has the data sets, nets, methods and suites that a row or column names."""
        for _, point in line:
            for kind in (*self.names, "suite"):
                name = self.scale.get("substitute", {}).get(kind, {}).get(point.get(kind), point.get(kind))
                name = self.simplest(name) if kind == "method" and name else name
                if name and not self._has(kind, name):
                    return False
        return True

    def figures(self) -> Iterator[Figure]:
        for name, spec in self.spec.get("figures", {}).items():
            shows = self._shows(spec, f"config/studies/{self.study}.yaml: figures.{name}")
            # The figure's own keys are those of a first point without a label, so that a line can have others.
            common = {"label": "", "measure": _MEASURES[shows], "probe": spec.get("probe", "")}
            if "settings" in spec:
                common["settings"] = spec["settings"]
            declared, left_out = self._part_of_scale(spec.get("lines", ()), "lines")
            if not (declared and self._has("item", f"{self.study}-{name}")):
                continue
            lines = tuple(
                Line(
                    self._label(points),
                    self._cell(name, spec, [("settings", common), *points], []),
                    tuple((axis, self._shown(point)) for axis, point in points),
                )
                for points in declared
                if points
            )
            yield Figure(
                self.study,
                name,
                spec["kind"],
                spec["title"],
                " ".join(filter(None, [spec["caption"], left_out])),
                spec.get("suite", ""),
                tuple(spec.get("settings", ())),
                lines,
                spec.get("options", {}),
                shows,
            )

    def _shows(self, spec: Mapping[str, Any], where: str) -> str:
        """What a figure is drawn from, by its kind.

        Raises:
            ConfigError: an unknown kind or probe, or a figure without what its kind needs; names ``where``.
        """
        kinds = plugins.figure_kinds()
        if spec["kind"] not in kinds:
            raise ConfigError(f"{where}.kind: " + unknown_name(spec["kind"], kinds, what="kind"))
        shows = kinds[spec["kind"]]
        for key, needed in (("lines", shows != "cells"), ("probe", shows == "probe")):
            if (key in spec) != needed:
                raise ConfigError(f"{where}: a figure of kind {spec['kind']} has {'a' if needed else 'no'} key {key!r}")
            if key == "probe" and needed:
                self.project.probe(spec["probe"])
        return shows

    def _cell(self, table: str, spec: Mapping[str, Any], row: Points, column: Points) -> Cell:
        """The cell at a row and a column, with the same cell under its alternative protocols."""
        points, labels = (*row, *column), f"{_written(row)} x {_written(column)}"
        where = f"config/studies/{self.study}.yaml: {table}: {labels}"
        place = {"table": table, "row": self._label(row), "column": self._label(column)}
        place["axes"] = tuple((axis, point["label"]) for axis, point in points)
        published = NOTHING
        if "published" in spec and not any(point.get("weights") == "last" for _, point in points):
            may_lack = any(point.get("not_in_paper") for _, point in points)
            wanted = wanted_columns(spec, points)
            published = self.numbers.find(wanted, where=f"{table}: {labels}", may_lack=may_lack)
        bound = {**bind(spec, points), "column": f"{self.study}-{table}: {_written(column)}" if column else ""}
        cell = self._measured(bound, place, published, where)
        if cell.not_run is not None:
            return cell
        for entry in bound.get("alternative_protocols", ()):
            for method in itertools.chain(*entry.get("methods", {}).items()):
                if method not in self.names["method"]:
                    said = unknown_name(method, self.names["method"], what="method")
                    raise ConfigError(f"{where}: alternative_protocols.methods: {said}")
        declared = (under_alternative(bound, entry) for entry in bound.get("alternative_protocols", ()))
        alternatives = (self._measured(each, place, published, where) for each in declared if each is not None)
        return replace(cell, alternatives=tuple(alternatives))

    def _measured(self, bound: Mapping[str, Any], place: Mapping[str, Any], published: Published, where: str) -> Cell:
        """The cell under one protocol."""
        bound, substitutes = dict(bound), list(bound.get("replaces", {}).items())
        for kind, replaced_by in self.scale.get("substitute", {}).items():
            original = bound.get(kind)
            if original in replaced_by:
                bound[kind] = replaced_by[original]
                substitutes.append((kind, original))
        measure, known = bound["measure"], plugins.measures()
        if measure not in known:
            raise ConfigError(f"{where}: " + unknown_name(measure, known, what="measure"))
        reads, not_run = known[measure], None
        rows = "rows" in reads
        if bound.get("method") in self.names["method"]:
            bound["method"] = self.simplest(bound["method"])
        # A property of the code needs no run, so no scale leaves it out.
        for kind in (*self.names, "column", *(["suite"] if rows else [])) if reads else ():
            if not_run is None and bound.get(kind) and not self._has(kind, bound[kind]):
                not_run = f"the {kind} {bound[kind]} is not part of scale {self.scale_name}"
        patterns, settings = tuple(bound.get("settings", ())), ()
        if not_run is None:
            self._check_names(bound, reads, where)
        if not_run is None and rows:
            known, suite = self.suites[bound["suite"]], bound["suite"]
            lacking = [name for name in patterns if not fnmatch.filter(known, name)]
            if lacking and bound.get("weights") == "last":
                not_run = f"the last epoch is not evaluated with {', '.join(lacking)}"
        if not_run is None and rows:
            settings = expand_settings(patterns, known, suite=suite, where=where)
            if bound.get("both_gradients") and bound["protocol"] == CORRECT and self.is_mixture(bound["method"]):
                settings = with_twins(settings, known, self.attacks, suite=suite, where=where)
                patterns = patterns if len(settings) == len(patterns) else settings
            check_protocol(bound["protocol"], settings, self.attacks, where=where)
        return Cell(
            study=self.study,
            dataset=bound.get("dataset", ""),
            arch=bound.get("arch", ""),
            method=bound.get("method", ""),
            suite=bound.get("suite", "") if rows else "",
            # A property of the code may be one of settings.
            settings=settings or patterns if rows or not reads else (),
            patterns=patterns if rows or not reads else (),
            measure=measure,
            reads=reads,
            aggregate=bound["aggregate"],
            code_property=bound.get("property", ""),
            probe=bound.get("probe", ""),
            protocol=bound["protocol"],
            seeds=self._seeds(bound.get("method", ""), probe="probe" in reads),
            # What is read from the code alone is compared as a word.
            published=published.value if reads else published.text,
            published_std=published.std,
            published_line=published.line,
            tolerance=bound.get("tolerance", self.spec["tolerance"]),
            hardware=bound.get("hardware"),
            weights=bound.get("weights", "best"),
            substitutes=tuple(substitutes),
            not_run=not_run,
            **place,
        )

    def _seeds(self, method: str, *, probe: bool) -> tuple[int, ...]:
        """The seeds of a method's runs; a probe is of one model."""
        number = 1 if probe else self.max_seeds.get(method, self.scale["max_seeds"])
        return tuple(self.spec["seeds"][:number])

    def _has(self, kind: str, name: str) -> bool:
        """Whether the scale has a data set, net, method, suite, column, or table or figure (an item)."""
        excluded = self.scale.get("exclude", {}).get(kind, ())
        return name in self.included.get(kind, [name]) and not any(fnmatch.fnmatch(name, each) for each in excluded)

    def _check_names(self, bound: Mapping[str, Any], reads: Sequence[str], where: str) -> None:
        needed = (["dataset", "arch", "method"] if reads else []) + (["suite", "settings"] if "rows" in reads else [])
        for kind in needed:
            if not bound.get(kind):
                raise ConfigError(f"{where}: no {kind} given; name one in a point of rows or columns")
        if "probe" in reads:
            self.project.probe(bound.get("probe", ""))
        for kind, names in {**self.names, "suite": self.suites}.items():
            if bound.get(kind) and bound[kind] not in names:
                raise ConfigError(f"{where}: " + unknown_name(bound[kind], names, what=kind))

    def _label(self, points: Points) -> str:
        """The points' labels; a substitute is never printed as what it replaces."""
        return " / ".join(filter(None, (self._shown(point) for _, point in points)))

    def _shown(self, point: Mapping[str, Any]) -> str:
        for kind, substitutes in self.scale.get("substitute", {}).items():
            if point.get(kind) in substitutes:
                # A label such as CIFAR-10 / VGG-19 names several things; the first is the one that is replaced.
                replaced, *rest = point["label"].split(" / ")
                if not rest and any(other in point for other in self.names if other != kind):
                    # One word for several things names none of them in particular: Balanced, a method on a data set.
                    return f"{replaced} ({substitutes[point[kind]]})"
                return " / ".join([f"{substitutes[point[kind]]} (for {replaced})", *rest])
        return point["label"]


def _product(axes) -> list[list[tuple[str, Mapping[str, Any]]]]:
    """The product of axes, the first one slowest: each element is [(axis name, point), …]."""
    names = [axis["axis"] for axis in axes]
    return [list(zip(names, points, strict=True)) for points in itertools.product(*(axis["points"] for axis in axes))]


def _written(points: Points) -> str:
    """The labels as the study writes them."""
    return " / ".join(point["label"] for _, point in points if point["label"])
