"""The cost of training, evaluation and checks, in forward passes of one image.

A gradient with respect to the input costs one pass more, a gradient with respect to all weights two more, as is
customary. Only convolutions and matrix products are counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moat.base.errors import ConfigError

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 1, 1, 1
ATTACK_STEP = FORWARD + INPUT_GRADIENT
TRAINING = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT

# Scoring one setting: the clean image, the attacked one, and the latter once more for its final prediction.
SCORING = 3 * FORWARD

# The cost of a method whose recipe has none: that of TRADES.
ASSUMED = {"attacks": {"attack": 1}, "forwards": 1, "trainings": 2}


@dataclass(frozen=True)
class Work:
    """A job's multiply-adds.

    Attributes:
        train: for attacks and updates during training, in the recipe's precision.
        evaluate: for validation, evaluations and checks, in float32.
    """

    train: float = 0.0
    evaluate: float = 0.0


def training_passes(recipe: Mapping[str, Any]) -> float:
    """Passes per training image and epoch, computed from the recipe's ``cost`` and the steps of its attacks."""
    cost = recipe.get("cost", ASSUMED)
    attacks = cost.get("attacks", {})
    steps = sum(times * _steps(recipe.get(key, {"steps": 0}), key) for key, times in attacks.items())
    return ATTACK_STEP * steps + FORWARD * cost.get("forwards", 0) + TRAINING * cost.get("trainings", 0)


def validation_passes(recipe: Mapping[str, Any], attack: Mapping[str, Any], families: Mapping[str, float]) -> float:
    """Passes per validation image and epoch, on average. ``attack``: the setting of the recipe's validation."""
    every = setting_passes("validation", attack, families) / recipe["validation"]["every"]
    others = recipe.get("cost", {}).get("validations", ())
    return every + sum(_steps(recipe[key], key) * ATTACK_STEP + FORWARD for key in others)


def setting_passes(name: str, setting: Mapping[str, Any], families: Mapping[str, float]) -> float:
    """Passes per image of an attack setting, including the scoring of its result.

    Args:
        families: the passes of attack families without ``steps`` (config/planner.yaml).

    Raises:
        ConfigError: a family whose passes neither the setting nor ``families`` tells.
    """
    family = setting["attack"]
    if family in families:
        return families[family] * setting.get("restarts", 1) + SCORING
    if "n_queries" in setting:
        return FORWARD * setting["n_queries"] + SCORING
    if "steps" not in setting:
        raise ConfigError(
            f"attack setting {name}: has no steps, and config/planner.yaml: attacks names no passes of {family!r}; "
            f"allowed: {', '.join(sorted(families))}, or an entry for it there"
        )
    starts = setting.get("restarts", 1) * setting.get("targets", 1)
    steps = starts * setting["steps"] * setting.get("eot", 1)
    # With several restarts, each of them is scored.
    return ATTACK_STEP * steps + FORWARD * (starts if starts > 1 else 0) + SCORING


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
