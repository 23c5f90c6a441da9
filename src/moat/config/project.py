"""A project: the folder that holds ``config/`` and ``workflow/schemas/``, and what they declare."""

import csv
import fnmatch
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moat.base import plugins
from moat.base.errors import ConfigError
from moat.config import attack_schema, corruptions, method_schema, schema, twins
from moat.config.published import COLUMNS

#: The names of data sets, methods, scales and studies: parts of paths and of commands, so without spaces and the like.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ALLOWED = "letters, digits, _ - and ., a letter or digit first"
#: What a project holds; moat reads nothing else of it as configuration.
PARTS = (Path("config"), Path("workflow") / "schemas")
_PACKAGE = Path(__file__).parents[1]
# Where the configuration that moat was installed with may be: in the package of a wheel, or in the checkout.
_INSTALLED = (_PACKAGE / "installed", _PACKAGE.parents[1])

# Scales whose names have been found: a plan asks for a scale hundreds of times.
_NAMES_CHECKED: set[tuple[Path, str]] = set()


def _matches(name: str, original: str | None, key: str) -> bool:
    """Whether what a scale changes under ``key``, a name or pattern, is about a setting or the one it is a twin of."""
    return any(fnmatch.fnmatchcase(each, key) for each in (name, original) if each is not None)


@dataclass(frozen=True)
class Project:
    """Reads a project's YAML files. Every getter raises :class:`ConfigError` with the allowed names.

    Attributes:
        root: the folder of the project: results, downloads and plug-ins are below it. As an argument, None is the
            working directory, which need not be a project.
        source: the folder whose ``config/`` and ``workflow/schemas/`` are read: ``root``, or where moat is installed.
    """

    root: Path | None = None
    source: Path = field(init=False)

    def __post_init__(self):
        root = Path(self.root or ".")
        lacking = _lacking(root)
        source = root
        if lacking is not None:
            installed = [] if self.root is not None else [each for each in _INSTALLED if _lacking(each) is None]
            if not installed:
                raise ConfigError(
                    f"{root.resolve()}: no folder {lacking}/ here; run moat in the project's root, "
                    "or name that with --project"
                )
            source = installed[0]
        object.__setattr__(self, "root", root)
        object.__setattr__(self, "source", source)
        plugins.use_project(source)

    @property
    def is_checkout(self) -> bool:
        """Whether ``root`` holds the configuration, rather than the place where moat is installed."""
        return self.source == self.root

    def require_checkout(self, what: str) -> None:
        """Refuse what cannot be done with the installed configuration alone.

        Raises:
            ConfigError: ``root`` is no project.
        """
        if not self.is_checkout:
            raise ConfigError(
                f"{self.root.resolve()}: {what} needs a checkout of moat, with its config/ and Snakefile; run it "
                "there, or name the folder with --project"
            )

    # -- one file per name -------------------------------------------------
    def names(self, kind: str) -> list[str]:
        """The registered names of ``"datasets"``, ``"methods"``, ``"scales"`` or ``"studies"``.

        A file whose name begins with ``_`` is there to be extended, and has no name; one that is not spelt as names
        are (:data:`NAME`), such as an editor's backup, has none either.
        """
        return [name for name in self._files(kind) if NAME.fullmatch(name)]

    def dataset(self, name: str) -> dict[str, Any]:
        return self._named("datasets", "dataset", name)

    def method(self, name: str) -> dict[str, Any]:
        """A method's recipe: what it extends, with its own keys on top; its ``class`` is always there.

        Mappings are merged key by key, anything else replaces what was there. The title is never inherited. In
        ``sources`` and ``deviations`` (topic: sentence) a topic is taken out by null.
        """
        files = self.recipe_files(name)
        recipe: dict[str, Any] = {}
        for own in reversed(files.values()):
            recipe = schema.merge(recipe, own)
        recipe.pop("extends", None)
        if "title" not in files[name]:
            recipe.pop("title", None)
        # Without a class of its own: that of the recipe it extends, in the end the one of that one's name.
        recipe.setdefault("class", [each for each in files if not each.startswith("_")][-1])
        for key in ("sources", "deviations"):
            topics = recipe.get(key)
            if isinstance(topics, dict):
                recipe[key] = {topic: sentence for topic, sentence in topics.items() if sentence is not None}
        layers = [(f"config/methods/{each}.yaml", own) for each, own in files.items()]
        self.check_recipe(recipe, name, layers)
        return method_schema.with_defaults(recipe)

    def check_recipe(
        self, recipe: Mapping[str, Any], name: str, layers: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> None:
        """Check a merged recipe and the attack settings in it; the arguments are those of :func:`method_schema.check`.

        Raises:
            ConfigError: names the file, the key, what is allowed, and where that is declared.
        """
        method_schema.check(recipe, name, layers, self.source)
        for key in method_schema.of_type(recipe, "setting"):
            attack_schema.check({key: recipe[key]}, self.source, source=f"config/methods/{name}.yaml")

    def recipe_files(self, name: str) -> dict[str, dict[str, Any]]:
        """A recipe's file and those that it extends, as written: name -> content, the recipe's own first."""
        return self._extended("methods", "method", "recipe", name)

    def scale_files(self, name: str) -> dict[str, dict[str, Any]]:
        """As :meth:`recipe_files`, of a scale."""
        return self._extended("scales", "scale", "scale", name)

    def _extended(self, folder: str, kind: str, what: str, name: str) -> dict[str, dict[str, Any]]:
        known = self.names(folder)
        if name not in known:
            raise self._unknown(folder, kind, name, known)
        found, wanted = {}, name
        while wanted:
            where = f"config/{folder}/{wanted}.yaml"
            content = schema.read_yaml(self.source / where)
            if not isinstance(content, dict):
                raise ConfigError(f"{where}: {content!r} has the wrong type; allowed: object")
            found[wanted], wanted = content, content.get("extends")
            if wanted in found:
                raise ConfigError(f"{where}: extends: {wanted!r} extends this {what} in turn")
            if wanted is not None and wanted not in (there := self._files(folder)):
                raise ConfigError(f"{where}: extends: " + schema.unknown_name(wanted, there, what=what))
        return found

    def scale(self, name: str) -> dict[str, Any]:
        """A scale: what it extends, with its own keys on top, merged as recipes are.

        Title and description are never inherited.
        """
        files, scale = self.scale_files(name), {}
        for each, own in reversed(files.items()):
            titles = ("title", "description") if each != name else ()
            scale = schema.merge(scale, {key: value for key, value in own.items() if key not in titles})
        layers = [(self.source / f"config/scales/{each}.yaml", own) for each, own in files.items()]
        schema.validate(scale, self._schema("scale"), source=layers[0][0], layers=layers)
        known = (self.root, json.dumps(scale))
        if known not in _NAMES_CHECKED:
            self._check_names(scale, name, layers)
            _NAMES_CHECKED.add(known)
        return scale

    def _check_names(self, scale: Mapping[str, Any], name: str, layers: Sequence[tuple[Path, Any]]) -> None:
        """What a scale names must exist. Raises ConfigError."""
        named = {
            "method": [
                *scale.get("recipes", {}),
                *scale.get("seeds", {}),
                *scale.get("include", {}).get("method", []),
                *(scale["last_epoch"] if isinstance(scale.get("last_epoch"), list) else []),
            ],
            "dataset": [
                *scale.get("include", {}).get("dataset", []),
                *scale.get("substitute", {}).get("dataset", {}).values(),
            ],
        }
        written = self.attacks() if "attacks" in scale else {}
        for each in scale.get("attacks", {}):
            known = each in written or twins.original(each, written) is not None
            if not known and not fnmatch.filter([*written, *corruptions.all_settings()], each):
                what = schema.unknown_name(each, written, what="attack setting")
                raise ConfigError(f"{schema.layer_of(('attacks', each), layers, name)}: attacks: {what}")
        for kind, patterns in scale.get("exclude", {}).items():
            known = self._excludable(kind)
            for pattern in patterns:
                # A study that is not in this project has nothing to leave out.
                absent = kind in ("item", "column") and pattern.partition("-")[0] not in self.names("studies")
                if not absent and not fnmatch.filter(known, pattern):
                    what = schema.unknown_name(pattern, known, what=kind)
                    raise ConfigError(f"config/scales/{name}.yaml: exclude: {what}")
        for kind, used in named.items():
            for each in used:
                if each not in self.names(f"{kind}s"):
                    what = schema.unknown_name(each, self.names(f"{kind}s"), what=kind)
                    raise ConfigError(f"config/scales/{name}.yaml: {what}")

    def _excludable(self, kind: str) -> list[str]:
        if kind == "item":
            studies = {name: self.study(name) for name in self.names("studies")}
            parts = ("tables", "figures")
            return [
                f"{name}-{item}" for name, study in studies.items() for part in parts for item in study.get(part, ())
            ]
        if kind == "column":
            tables = ((name, self.study(name).get("tables", {})) for name in self.names("studies"))
            return [
                f"{name}-{table}: {' / '.join(labels)}"
                for name, declared in tables
                for table, spec in declared.items()
                for labels in itertools.product(
                    *([each["label"] for each in axis["points"]] for axis in spec["columns"])
                )
            ]
        return {"arch": plugins.archs, "suite": self.suites}.get(kind, lambda: self.names(f"{kind}s"))()

    def study(self, name: str) -> dict[str, Any]:
        return self._named("studies", "study", name)

    # -- one file for all --------------------------------------------------
    def config(self) -> dict[str, Any]:
        """``config/config.yaml``."""
        return self._load("config/config.yaml", "config")

    def attacks(self) -> dict[str, dict[str, Any]]:
        """Named attack settings: name -> {attack, parameters…}."""
        path = self.source / "config" / "attacks.yaml"
        settings = schema.read_yaml(path)
        attack_schema.check(settings, self.source, source=path)
        return settings

    def suites(self) -> dict[str, dict[str, Any]]:
        """Suites as written: name -> {title, settings: [attack settings…], worst_case: [{name, of}…], corruptions}."""
        return self._load("config/suites.yaml", "suites")

    def probes(self) -> dict[str, dict[str, Any]]:
        """What figures need of a model itself: name -> {probe, parameters…}."""
        return self._load("config/probes.yaml", "probes")

    def probe(self, name: str) -> dict[str, Any]:
        return self._pick(self.probes(), name, "probe", "config/probes.yaml")

    def suite(self, name: str) -> dict[str, Any]:
        """One suite; its ``settings`` are all of its attack settings, those of its corruptions last."""
        suite = self._pick(self.suites(), name, "suite", "config/suites.yaml")
        generated = corruptions.settings(suite["corruptions"]) if "corruptions" in suite else {}
        return {**suite, "settings": [*suite["settings"], *generated]}

    def measured(self, suite: str) -> list[str]:
        """Everything that an evaluation of the suite has rows of: its settings and its worst cases."""
        declared = self.suite(suite)
        return [*declared["settings"], *(group["name"] for group in declared.get("worst_case", []))]

    def attack_settings(self, suite: str, scale: str | None = None) -> dict[str, dict[str, Any]]:
        """The attack settings of a suite, in the suite's order: name -> {attack, parameters…}."""
        where = f"config/suites.yaml: {suite}"
        return {name: self.attack(name, where=where, scale=scale) for name in self.suite(suite)["settings"]}

    def worst_cases(self, suite: str, scale: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """The worst cases of a suite: name -> {setting: {attack, parameters…}}."""
        where = f"config/suites.yaml: {suite}: worst_case"
        return {
            group["name"]: {name: self.attack(name, where=where, scale=scale) for name in group["of"]}
            for group in self.suite(suite).get("worst_case", [])
        }

    def attack(self, name: str, *, where: str, scale: str | None = None) -> dict[str, Any]:
        """One attack setting, also a corruption's (``fog-3``) or a twin (``pgd10_det``), with what ``scale`` overrides.

        What a scale overrides of a setting holds for its twin; a name wins over a pattern.
        ``where`` names who asks for it.
        """
        written = {**corruptions.all_settings(), **self.attacks()}
        original = twins.original(name, written)
        setting = self._pick(written, original or name, "attack setting", where)
        changes = {} if scale is None else self.scale(scale).get("attacks", {})
        overrides: dict[str, Any] = {}
        for key in [key for key in changes if _matches(name, original, key)]:
            overrides |= changes[key]
        overrides |= {**changes.get(original, {}), **changes.get(name, {})}
        if not overrides:
            return setting if original is None else {**setting, **twins.KEYS}
        merged = {**setting, **overrides, **({} if original is None else twins.KEYS)}
        source = f"config/attacks.yaml with the overrides of config/scales/{scale}.yaml"
        # A file's names have no hyphen, unlike those of corruptions.
        attack_schema.check({name.replace("-", "_"): merged}, self.source, source=source)
        return merged

    def changed_attacks(self, scale: str) -> list[str]:
        """The attack settings of ``config/attacks.yaml`` that a scale changes, and the twins that it names."""
        changes, written = self.scale(scale).get("attacks", {}), self.attacks()
        named = [name for name in changes if twins.original(name, written) is not None]
        return [name for name in written if any(fnmatch.fnmatchcase(name, key) for key in changes)] + named

    def planner(self) -> dict[str, Any]:
        """``config/planner.yaml``: what plans know beside the recipes."""
        return self._load("config/planner.yaml", "planner")

    def published(self, study: str) -> list[dict[str, str]]:
        """The rows of ``config/published/<study>.csv``; an empty list for a study without a paper."""
        path = self.source / "config" / "published" / f"{study}.csv"
        if not path.exists():
            return []
        where = f"config/published/{study}.csv"
        try:
            # With or without the mark that spreadsheets put first.
            with open(path, encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                rows, columns = list(reader), reader.fieldnames or []
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{where}: not a table in UTF-8 with commas ({error})") from error
        if missing := [name for name in COLUMNS if name not in columns]:
            hint = "; columns are separated by commas" if len(columns) == 1 else ""
            raise ConfigError(f"{where}: no column {missing[0]!r}; needed: {', '.join(COLUMNS)}{hint}")
        return rows

    def claims(self) -> dict[str, dict[str, Any]]:
        """``config/claims.yaml``: what the papers claim; nothing where there is no such file."""
        relative = "config/claims.yaml"
        return self._load(relative, "claims") if (self.source / relative).exists() else {}

    # ----------------------------------------------------------------------
    def _files(self, folder: str) -> list[str]:
        # As `visible` does; a plan asks tens of thousands of times.
        names = os.listdir(self.source / "config" / folder)
        return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name[0] != ".")

    def _named(self, folder: str, kind: str, name: str) -> dict[str, Any]:
        known = self.names(folder)
        if name not in known:
            raise self._unknown(folder, kind, name, known)
        return self._load(f"config/{folder}/{name}.yaml", kind)

    def _unknown(self, folder: str, kind: str, name: str, known: list[str]) -> ConfigError:
        if name in self._files(folder) and not name.startswith("_"):
            return ConfigError(f"config/{folder}/{name}.yaml: no file may have this name; allowed: {ALLOWED}")
        return ConfigError(schema.unknown_name(name, known, what=kind) + f" (one file each in config/{folder}/)")

    def _load(self, relative: str, kind: str) -> dict[str, Any]:
        return schema.load(self.source / relative, self._schema(kind))

    def _schema(self, kind: str) -> Path:
        return self.source / "workflow" / "schemas" / f"{kind}.schema.yaml"

    @staticmethod
    def _pick(known: dict[str, Any], name: str, kind: str, where: str) -> Any:
        if name not in known:
            raise ConfigError(f"{where}: " + schema.unknown_name(name, known, what=kind))
        return known[name]


def _lacking(folder: Path) -> str | None:
    """The first of a project's folders that is not there."""
    return next((str(part) for part in PARTS if not (folder / part).is_dir()), None)
