"""Settings in the words of DWF's Tables 4 and 5: of ``config/attacks.yaml``, and of recipes before any scale."""

from collections.abc import Mapping, Sequence
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.base.numbers import parse_number
from moat.config.project import Project

# Families that see the model's outputs only.
_BLACK_BOX = ("square",)


def attack_property(project: Project, settings: Sequence[str], name: str) -> str:
    """A property of attack settings that differ in one parameter at most.

    Args:
        name: ``parameters``, e.g. "eps=8/255; alpha=2/255; i in {10,20,30,40,50}"; or ``knowledge``: "white-box" where
            the attack follows the gradient of the model that is measured, "black-box" otherwise.

    Raises:
        ConfigError: unknown setting or property.
    """
    known = {"parameters": _parameters, "knowledge": _knowledge}
    if name not in known:
        raise ConfigError(unknown_name(name, known, what="property of attack settings"))
    return known[name]([project.attack(each, where="attack_property") for each in settings])


def _parameters(settings: Sequence[Mapping[str, Any]]) -> str:
    words = {"eps": "eps", "step_size": "alpha", "steps": "i", "restarts": "restarts", "eot": "EoT samples"}
    said = []
    for key, word in words.items():
        values = list(dict.fromkeys(str(each[key]) for each in settings if key in each))
        if len(values) > 6:
            values = [*values[:2], "...", values[-1]]
        if values:
            said.append(f"{word}={values[0]}" if len(values) == 1 else f"{word} in {{{','.join(values)}}}")
    return "; ".join(said)


def _knowledge(settings: Sequence[Mapping[str, Any]]) -> str:
    black = any(each["attack"] in _BLACK_BOX or "transfer_from" in each for each in settings)
    return "black-box" if black else "white-box"


def recipe_property(project: Project, method: str, name: str) -> str:
    """``epochs``, ``lr``, ``weight_decay`` or ``batch_size`` of a recipe.

    A batch is "128x3" where an update makes three passes over it: clean images, and the examples of two attacks.

    Raises:
        ConfigError: unknown property.
    """
    recipe = project.method(method)
    passes = recipe.get("cost", {}).get("trainings", 1)
    known = {
        "epochs": recipe["epochs"],
        "lr": recipe["optimizer"]["lr"],
        "weight_decay": recipe["optimizer"]["weight_decay"],
        "batch_size": f"{recipe['batch_size']}x{passes}" if passes > 1 else recipe["batch_size"],
    }
    if name not in known:
        raise ConfigError(unknown_name(name, known, what="property of a recipe"))
    return str(known[name])


def experts_property(project: Project, method: str, name: str) -> str:
    """:func:`recipe_property` of the recipes that ``method`` starts from, then of itself: "150, 100"; one if all agree.

    Raises:
        ConfigError: unknown property, or a method that starts from no runs.
    """
    starts = project.method(method).get("initialize_from")
    if not starts:
        raise ConfigError(f"config/methods/{method}.yaml: no initialize_from, so it has no experts' recipes")
    words = [recipe_property(project, each["method"], name) for each in starts]
    return ", ".join(dict.fromkeys([*words, recipe_property(project, method, name)]))


def same(ours: str, published: str) -> bool:
    """Whether two words are equal; of numbers, whether they have the same value: 5e-4 is 0.0005."""
    try:
        return parse_number(ours) == parse_number(published)
    except ConfigError:
        return ours == published
