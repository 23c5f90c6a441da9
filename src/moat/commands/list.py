"""List the methods, attack settings, attack families, datasets, suites, scales or checks, one line each."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moat.base import plugins
from moat.base.errors import ConfigError, unknown_name
from moat.config.project import Project


@dataclass(frozen=True)
class Request:
    """The kind to list, one of :data:`KINDS`, and whether to print JSON."""

    project: Project
    kind: str
    json: bool


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="print JSON: a list of {name, title}")


def request(arguments: Namespace) -> Request:
    if arguments.kind not in KINDS:
        raise ConfigError(unknown_name(arguments.kind, KINDS, what="kind"))
    return Request(Project(arguments.project), arguments.kind, arguments.json)


def run(request: Request) -> None:
    found = KINDS[request.kind](request.project)
    if request.json:
        print(json.dumps([{"name": name, "title": title} for name, title in found.items()], indent=2))
        return
    width = max(map(len, found), default=0)
    for name, title in found.items():
        print(f"{name:{width}}  {title}")


def _methods(project: Project) -> dict[str, str]:
    return {name: project.method(name)["title"] for name in project.names("methods")}


def _datasets(project: Project) -> dict[str, str]:
    return {name: project.dataset(name)["title"] for name in project.names("datasets")}


def _scales(project: Project) -> dict[str, str]:
    return {name: " ".join(project.scale(name)["description"].split()) for name in project.names("scales")}


def _attacks(project: Project) -> dict[str, str]:
    return {name: _attack(setting) for name, setting in project.attacks().items()}


def _families(project: Project) -> dict[str, str]:
    return {name: plugins.attack_summary(name) for name in plugins.attack_families()}


def _attack(setting: Mapping[str, Any]) -> str:
    """Its family and parameters: ``pgd: eps 8/255, step_size 2/255, steps 10``."""
    parameters = ", ".join(f"{key} {_text(value)}" for key, value in setting.items() if key != "attack")
    return f"{setting['attack']}: {parameters}" if parameters else setting["attack"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _suites(project: Project) -> dict[str, str]:
    return {name: suite["title"] for name, suite in project.suites().items()}


def _checks(project: Project) -> dict[str, str]:
    # Here, because the checks import torch.
    from moat.evaluation.checks import registry

    return registry.titles()


KINDS: Mapping[str, Callable[[Project], dict[str, str]]] = {
    "methods": _methods,
    "attacks": _attacks,
    "families": _families,
    "datasets": _datasets,
    "suites": _suites,
    "scales": _scales,
    "checks": _checks,
}
