"""What a job computes, in passes through the net: of a training, of an evaluation, of the checks.

The unit is one forward pass of one image. A gradient with respect to the input costs one more, one with respect to
all weights two more, as is the custom; what is not a convolution or a matrix product is not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moat.base.errors import ConfigError

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 1, 1, 1
ATTACK_STEP = FORWARD + INPUT_GRADIENT
TRAINING = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT

# Of each setting's result: the clean image, the attacked one, and the latter once more for its verdict.
JUDGEMENT = 3 * FORWARD

# What is assumed of a method whose recipe has no cost: that of TRADES.
ASSUMED = {"attacks": {"attack": 1}, "forwards": 1, "trainings": 2}


@dataclass(frozen=True)
class Work:
    """Multiply-adds, by what they are spent on.

    Attributes:
        train: attacks and updates of a training, in the recipe's precision.
        evaluate: validation, evaluations and checks, in float32.
    """

    train: float = 0.0
    evaluate: float = 0.0


def training_passes(recipe: Mapping[str, Any]) -> float:
    """Passes per training image and epoch, from the recipe's ``cost`` and the steps of its attacks."""
    cost = recipe.get("cost", ASSUMED)
    attacks = cost.get("attacks", {})
    steps = sum(times * _steps(recipe.get(key, {"steps": 0}), key) for key, times in attacks.items())
    return ATTACK_STEP * steps + FORWARD * cost.get("forwards", 0) + TRAINING * cost.get("trainings", 0)


def validation_passes(recipe: Mapping[str, Any], attack: Mapping[str, Any], families: Mapping[str, float]) -> float:
    """Passes per held-out image, the mean over the epochs. ``attack``: the setting that validation names."""
    every = setting_passes("validation", attack, families) / recipe["validation"]["every"]
    others = recipe.get("cost", {}).get("validations", ())
    return every + sum(_steps(recipe[key], key) * ATTACK_STEP + FORWARD for key in others)


def setting_passes(name: str, setting: Mapping[str, Any], families: Mapping[str, float]) -> float:
    """Passes per image of an attack setting, the judgement of its result included.

    Args:
        families: attack families that have no ``steps``, and their passes (config/planner.yaml).

    Raises:
        ConfigError: a family that tells neither here nor there how long it runs.
    """
    family = setting["attack"]
    if family in families:
        return families[family] * setting.get("restarts", 1) + JUDGEMENT
    if "n_queries" in setting:
        return FORWARD * setting["n_queries"] + JUDGEMENT
    if "steps" not in setting:
        raise ConfigError(
            f"attack setting {name}: has no steps, and config/planner.yaml: attacks names no passes of {family!r}; "
            f"allowed: {', '.join(sorted(families))}, or an entry for it there"
        )
    starts = setting.get("restarts", 1) * setting.get("targets", 1)
    steps = starts * setting["steps"] * setting.get("eot", 1)
    # Of several starts each is judged.
    return ATTACK_STEP * steps + FORWARD * (starts if starts > 1 else 0) + JUDGEMENT


def checks_passes(checks: Mapping[str, float], budget: Mapping[str, Any]) -> float:
    """Passes per example of the checks on a model.

    Args:
        checks: of config/planner.yaml.
        budget: the scale's ``checks``: steps, queries.
    """
    steps, queries = budget.get("steps", checks["steps"]), budget.get("queries", checks["queries"])
    return checks["passes"] + checks["per_step"] * steps + checks["per_query"] * queries


def _steps(attack: Mapping[str, Any], key: str) -> float:
    """Steps of a recipe's attack; their mean where one number is drawn for each batch; 1 where it has none (FGSM)."""
    steps = attack.get("steps", 1)
    if isinstance(steps, list):
        if not steps:
            raise ConfigError(f"{key}.steps: an empty list; at least one number of steps is needed")
        return sum(steps) / len(steps)
    return steps
