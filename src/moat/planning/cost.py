"""The cost of training, evaluation and checks, in forward passes of one image.

A gradient with respect to the input costs one pass more, a gradient with respect to all weights two more, as is
customary. Only convolutions and matrix products are counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moat.base.errors import ConfigError

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 1, 1, 1
ATTACK_STEP = FORWARD + INPUT_GRADIENT
TRAINING = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT

# Scoring one setting: the clean image, the attacked one, and the latter once more for its final prediction.
SCORING = 3 * FORWARD

# The passes of an attack that neither has ``steps`` nor declares them: those of PGD-50.
UNKNOWN_ATTACK = 50 * ATTACK_STEP


@dataclass(frozen=True)
class Work:
    """A job's multiply-adds.

    Attributes:
        train: for attacks and updates during training, in the recipe's precision.
        evaluate: for validation, evaluations and checks, in float32.
        unknown: methods and attack settings, of which nothing tells what they cost, so that it is assumed.
    """

    train: float = 0.0
    evaluate: float = 0.0
    unknown: frozenset[str] = frozenset()


def training_passes(recipe: Mapping[str, Any]) -> float:
    """Passes per training image and epoch, computed from the recipe's ``cost`` and the steps of its attacks.

    Without a cost: each of the recipe's attacks once, and an update on the clean and on each kind of attacked images.
    """
    if not knows_training(recipe):
        attacks = {key: 1 for key, value in recipe.items() if isinstance(value, Mapping) and "steps" in value}
        return _passes(recipe, {"attacks": attacks, "trainings": 1 + len(attacks)})
    return _passes(recipe, recipe["cost"])


def knows_training(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe says what an update costs; a cost that adds up to nothing says nothing."""
    return _passes(recipe, recipe.get("cost", {})) > 0


def _passes(recipe: Mapping[str, Any], cost: Mapping[str, Any]) -> float:
    attacks = cost.get("attacks", {})
    steps = sum(times * _steps(recipe.get(key, {"steps": 0}), key) for key, times in attacks.items())
    return ATTACK_STEP * steps + FORWARD * cost.get("forwards", 0) + TRAINING * cost.get("trainings", 0)


def validation_passes(recipe: Mapping[str, Any], attack: Mapping[str, Any], families: Mapping[str, float]) -> float:
    """Passes per validation image and epoch, on average. ``attack``: the setting of the recipe's validation."""
    epochs = recipe["epochs"]
    # The last epoch is always validated.
    share = math.ceil(epochs / recipe["validation"]["every"]) / epochs
    others = recipe.get("cost", {}).get("validations", ())
    every_epoch = sum(_steps(recipe[key], key) * ATTACK_STEP + FORWARD for key in others)
    return share * setting_passes(attack, families) + every_epoch


def fit_passes(recipe: Mapping[str, Any], held_out: int) -> float:
    """Passes of a whole training for what it fits to held-out images, of which there are ``held_out``."""
    cost = recipe.get("cost", {}).get("fit")
    if cost is None:
        return 0.0
    fit, attacks = recipe["fit"], cost["attacks"]
    if isinstance(attacks, str):
        value = fit[attacks]
        attacks = len(value) if isinstance(value, list) else value
    return min(held_out, fit["images"]) * attacks * cost.get("share", 1) * (ATTACK_STEP * fit["steps"] + FORWARD)


def setting_passes(setting: Mapping[str, Any], families: Mapping[str, float]) -> float:
    """Passes per image of an attack setting, including the scoring of its result.

    Args:
        families: the passes of attack families that declare them (:func:`moat.base.plugins.attack_passes`).
    """
    restarts, targets, averaged = (_number(setting.get(key, 1)) for key in ("restarts", "targets", "eot"))
    if setting["attack"] in families:
        return families[setting["attack"]] * restarts + SCORING
    if not knows_setting(setting, families):
        return UNKNOWN_ATTACK * restarts + SCORING
    if "n_queries" in setting:
        return FORWARD * setting["n_queries"] + SCORING
    starts = restarts * targets
    # With several restarts, each of them is scored.
    return ATTACK_STEP * starts * setting["steps"] * averaged + FORWARD * (starts if starts > 1 else 0) + SCORING


def knows_setting(setting: Mapping[str, Any], families: Mapping[str, float]) -> bool:
    """Whether an attack setting or its family tells how many passes it takes."""
    counts = [setting.get(key) for key in ("n_queries", "steps")]
    return setting["attack"] in families or any(_number(count, 0) > 0 for count in counts)


def _number(value: Any, otherwise: float = 1) -> float:
    """A factor of an attack's passes; a plug-in may use the same word for something else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def checks_passes(checks: Mapping[str, float], budget: Mapping[str, Any]) -> float:
    """Passes per example of the checks on a model.

    Args:
        checks: the ``checks`` of config/planner.yaml.
        budget: the ``checks`` of the scale: steps, queries.
    """
    steps, queries = budget.get("steps", checks["steps"]), budget.get("queries", checks["queries"])
    return checks["passes"] + checks["per_step"] * steps + checks["per_query"] * queries


def _steps(attack: Mapping[str, Any], key: str) -> float:
    """Steps of a recipe's attack: the mean of a list, of which each batch draws one; 1 for FGSM, which has none."""
    steps = attack.get("steps", 1)
    if isinstance(steps, list):
        if not steps:
            raise ConfigError(f"{key}.steps: an empty list; at least one number of steps is needed")
        return sum(steps) / len(steps)
    return steps
