"""Recipes resolved for one run: the method's YAML, overridden by the scale's, plus net and data.

The *digest* of a resolved recipe decides whether a run is up to date: it covers everything that
changes a result and nothing that does not (titles, sources, comments, the order of keys).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from moat.base import plugins
from moat.base.errors import ConfigError
from moat.base.numbers import parse_number
from moat.config import method_schema
from moat.config.project import Project
from moat.config.schema import merge

__all__ = [
    "deviations", "digest", "merge", "resolve_content", "resolve_data", "resolve_evaluation", "resolve_probe",
    "resolve_recipe", "resolve_run", "simplest",
]  # fmt: skip

# What is said about a method or a data set, but decides no result: for people, and for plans (cost, images).
_DOCUMENTATION = {
    "title", "description", "sources", "deviations", "licence", "citation", "classes_source", "cost", "images",
}  # fmt: skip
# Where no scale says otherwise: the radius that checks are made at, and how many test images. Enough to find what they
# look for; they cost about 100 gradients an image.
CHECKED_EPS, CHECKED_IMAGES = 8 / 255, 1000

# In JSON: a string that is a fraction, and the decimals of a whole number.
_FRACTION = re.compile(r'"(-?[0-9.]+ ?/ ?0*[1-9][0-9]*)"(?!:)')
_WHOLE = re.compile(r"(?<=[0-9])\.0(?=[,}\]]|$)")

# Keys of attack settings that only evaluations implement.
_OF_EVALUATIONS = ("protocol", "transfer_from", "limit")


def digest(content: Any) -> str:
    """16 hex digits that change exactly when a value of ``content`` changes: 8/255 is its decimal, and 1.0 is 1."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    # In the text, because plans make thousands of digests.
    text = _FRACTION.sub(lambda found: json.dumps(parse_number(found[1])), text)
    text = _WHOLE.sub("", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve_recipe(project: Project, scale: str, method: str) -> dict[str, Any]:
    """The recipe of ``method`` at ``scale``: its YAML, then ``recipe:``, then ``recipes.<method>:`` of the scale.

    What the scale says in ``recipes`` of a recipe holds for those that extend it, too, and what it says of a key for
    those that follow it (a ``router_optimizer`` the ``optimizer``), unless it names these themselves. Its
    ``max_attack_steps`` holds for what none of these names.

    Raises:
        ConfigError: the scale's overrides do not fit the recipe's schema; names file and key.
    """
    recipe, scaled = project.method(method), project.scale(scale)
    files, scales = project.recipe_files(method), project.scale_files(scale)
    layers = [
        (f"config/scales/{each}.yaml: recipes.{of}", own.get("recipes", {}).get(of, {}))
        for of in files
        for each, own in scales.items()
    ]
    layers += [(f"config/scales/{each}.yaml: recipe", own.get("recipe", {})) for each, own in scales.items()]
    overrides: dict[str, Any] = {}
    for _, layer in reversed(layers):
        overrides = merge(overrides, layer)
    for follower, leader in method_schema.followers(recipe):
        if leader in overrides:
            overrides = {follower: overrides[leader], **overrides}
    if "max_attack_steps" in scaled:
        recipe = _with_fewer_steps(recipe, scaled["max_attack_steps"])
    recipe = merge(recipe, overrides)
    written = ((f"config/methods/{each}.yaml", own) for each, own in files.items())
    project.check_recipe(recipe, method, [*layers, *written])
    return recipe


def deviations(project: Project, scale: str, *, dataset: str, method: str) -> dict[str, str]:
    """What a run decides where its sources are silent, and where it differs from them: topic -> sentence.

    Those of the data set, those that all recipes inherit, and the recipe's own; a later one replaces an earlier one of
    the same topic.
    """
    of_recipe = resolve_recipe(project, scale, method)["deviations"]
    return {**project.dataset(dataset).get("deviations", {}), **of_recipe}


def simplest(project: Project, scale: str, method: str, _path: tuple[str, ...] = ()) -> str:
    """The recipe to run for ``method`` at ``scale``: the furthest one it extends that resolves to the same content.

    A variant may differ from what it extends in a budget that the scale overrides for both; trained twice, they would
    be the same run under two names.
    """
    if method in _path:
        return method
    own = _content(project, scale, method, _path)
    found = method
    for name in list(project.recipe_files(method))[1:]:
        if name.startswith("_") or _content(project, scale, name, _path) != own:
            break
        found = name
    return found


def _content(project: Project, scale: str, method: str, path: tuple[str, ...]) -> dict[str, Any]:
    """What decides a run. ``role`` says only when it is trained, ``extends`` only how its recipe is written."""
    content = _undocumented(resolve_recipe(project, scale, method))
    starts = content.get("initialize_from", ())
    content["initialize_from"] = [
        {**each, "method": simplest(project, scale, each["method"], (*path, method))} for each in starts
    ]
    return {key: value for key, value in content.items() if key not in ("role", "extends", "version")}


def _with_fewer_steps(recipe: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
    """Attacks of training with more than ``max_steps`` steps take that many, longer ones: together as far as before."""
    shortened = {}
    for key in method_schema.of_type(recipe, "attack"):
        attack = recipe[key]
        if attack["steps"] > max_steps:
            step_size = parse_number(attack["step_size"], where=f"{key}.step_size") * attack["steps"] / max_steps
            shortened[key] = {**attack, "steps": max_steps, "step_size": step_size}
    return {**recipe, **shortened}


def resolve_data(project: Project, scale: str, dataset: str) -> dict[str, Any]:
    """What :func:`moat.data.datasets.prepare` is told for ``dataset`` at ``scale``."""
    return {"dataset": dataset, "spec": _undocumented(project.dataset(dataset)), **project.scale(scale)["data"]}


def resolve_content(project: Project, dataset: str) -> dict[str, Any]:
    """What of a data set changes numbers: its description, and the hashes of its files, wherever they come from."""
    spec = _undocumented(project.dataset(dataset))
    return {**spec, "files": [file.get("sha256", file["name"]) for file in spec["files"]]}


def resolve_run(project: Project, scale: str, *, dataset: str, arch: str, method: str, seed: int) -> dict[str, Any]:
    """Everything that decides the weights of one run, but the code and the bytes of the data."""
    recipe = _undocumented(resolve_recipe(project, scale, method))
    kind = recipe.pop("class")
    model = merge({"width": 1.0}, merge(project.scale(scale).get("model", {}), recipe.pop("model", {})))
    mixture, where = plugins.mixture_of(kind, model), f"config/methods/{method}.yaml"
    setting = recipe["validation"]["setting"]
    validation = _without_defaults(project.attack(setting, where=f"{where}: validation.setting"))
    validated = {f"validation.setting: {setting!r}": validation}
    validated |= {f"{key}: it": recipe[key] for key in method_schema.of_type({**recipe, "class": kind}, "setting")}
    for which, attack in validated.items():
        _check_validated(attack, recipe.get("attack_space", {}).get("name", "pixel"), mixture, f"{where}: {which}")
    return {
        "dataset": dataset,
        "arch": arch,
        "method": method,
        "class": kind,
        "mixture": mixture,
        "seed": seed,
        "scale": scale,
        "recipe": recipe,
        "model": model,
        "data": project.scale(scale)["data"],
        "validation_attack": validation,
    }


def _check_validated(attack: Mapping[str, Any], space: str, mixture: str | None, where: str) -> None:
    """Training measures on held-out images what an attack setting says, or refuses it."""
    for key in _OF_EVALUATIONS:
        if attack.get(key, "correct") != "correct":
            raise ConfigError(
                f"{where} has {key} {attack[key]!r}, which validation does not know: it attacks the model itself, on "
                f"all held-out images, in the space of the training; allowed: a setting without {key}"
            )
    if mixture is None and "requires" in attack:
        raise ConfigError(f"{where} requires a mixture's {attack['requires']}, and the method trains a single net")
    known = ["none", *plugins.attacks_in_spaces()]
    if space != "pixel" and attack["attack"] not in known:
        raise ConfigError(
            f"{where} is the attack {attack['attack']!r}, which works in pixels only, and attack_space is {space}; "
            f"allowed there: {', '.join(known)}"
        )


def resolve_evaluation(project: Project, scale: str, suite: str) -> dict[str, Any]:
    """Everything that decides an evaluation, but the model."""
    settings = _all_without_defaults(project.attack_settings(suite, scale))
    resolved = {"suite": suite, "settings": settings, **project.scale(scale)["evaluation"]}
    worst_cases = {name: _all_without_defaults(cases) for name, cases in project.worst_cases(suite, scale).items()}
    return {**resolved, "worst_case": worst_cases} if worst_cases else resolved


def resolve_checks(project: Project, scale: str) -> dict[str, Any]:
    """Everything that decides what the checks of a run find, but the model: radius, images, what may be spent."""
    evaluation, checks = project.scale(scale)["evaluation"], project.scale(scale).get("checks", {})
    limit = checks["limit"] if "limit" in checks else _smallest(evaluation["limit"], CHECKED_IMAGES)
    budget = {key: checks[key] for key in ("steps", "queries") if key in checks}
    return {"eps": CHECKED_EPS, **evaluation, "limit": limit, **budget}


def resolve_probe(project: Project, scale: str, name: str) -> dict[str, Any]:
    """Everything that decides what a probe takes from a model, but the model: its parameters, attacks written out."""
    probe = dict(project.probe(name))
    if "setting" in probe:
        probe["attack"] = _without_defaults(
            project.attack(probe["setting"], where=f"config/probes.yaml: {name}", scale=scale)
        )
    evaluation = project.scale(scale)["evaluation"]
    images = _smallest(probe.get("images"), evaluation["limit"])
    return {**probe, "images": images, "batch_size": evaluation["batch_size"]}


def _without_defaults(setting: Mapping[str, Any]) -> dict[str, Any]:
    """An attack setting without what it would be anyway: written out, a default changes no result."""
    defaults = {**plugins.attack_defaults(setting["attack"]), "protocol": "correct", "limit": None}
    return {key: value for key, value in setting.items() if key not in defaults or value != defaults[key]}


def _all_without_defaults(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: _without_defaults(setting) for name, setting in settings.items()}


def _smallest(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _undocumented(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in _DOCUMENTATION}
