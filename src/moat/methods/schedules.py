"""Learning-rate schedules, as a factor of the base rate at each point of a training."""

import math
from collections.abc import Callable, Mapping
from typing import Any


def cosine(progress: float, schedule: Mapping[str, Any]) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def step(progress: float, schedule: Mapping[str, Any]) -> float:
    """Multiplied by ``factor`` (0.1 by default) at each of the ``milestones``, fractions of the training."""
    passed = sum(progress >= milestone for milestone in schedule.get("milestones", ()))
    return schedule.get("factor", 0.1) ** passed


def constant(progress: float, schedule: Mapping[str, Any]) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: Mapping[str, Callable[[float, Mapping[str, Any]], float]] = {
    "cosine": cosine,
    "step": step,
    "constant": constant,
}


def learning_rate_factor(schedule: Mapping[str, Any], progress: float) -> float:
    """The factor at ``progress`` in [0, 1) of the training; a linear ``warmup`` (a fraction of it) comes on top."""
    warmup = schedule.get("warmup", 0.0)
    ramp = min(1.0, progress / warmup) if warmup else 1.0
    return ramp * SCHEDULES[schedule["name"]](progress, schedule)
