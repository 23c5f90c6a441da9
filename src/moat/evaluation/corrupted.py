"""Corruptions as settings of a suite: the published images where they are prepared, else generated ones."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from moat.attacks.parts.setting import Attack
from moat.base.errors import MoatError
from moat.data.official_corruptions import OfficialCorruptions
from moat.data.seeding import derive_seed
from moat.evaluation.plan import SuitePlan
from moat.evaluation.statistics import mean_accuracy
from moat.evaluation.target import EvaluationTarget

log = logging.getLogger(__name__)

# The only benchmark whose images are published with these severities.
_PUBLISHED = "cifar10-c"


def is_corruption(attack: Attack) -> bool:
    return attack.parameters.get("attack") == "corruption"


def with_images(plan: SuitePlan, target: EvaluationTarget) -> SuitePlan:
    """The plan with corruptions on published images, if their prepared file lies beside the target's dataset."""
    if not any(map(is_corruption, plan.settings.values())):
        return plan
    official = OfficialCorruptions.beside(target.data_path)
    if official and (missing := official.lacks(target.indices)):
        n = len(target.indices)
        log.warning("%s lacks %d of %d images: corruptions are generated instead", official.path, missing, n)
        official = None
    settings = prepared(plan.settings, official, labels=target.y.tolist(), indices=target.indices)
    record = {name: dict(attack.parameters) for name, attack in settings.items()}
    return dataclasses.replace(plan, settings=settings, record={**plan.record, **record})


def prepared(
    settings: Mapping[str, Attack],
    official: OfficialCorruptions | None,
    *,
    labels: Sequence[int],
    indices: Sequence[int],
    seed: int = 0,
) -> dict[str, Attack]:
    """The settings of a suite, its corruptions with the source of their images; other settings unchanged.

    Args:
        official: published images, used for settings with CIFAR-10-C's severities.
        labels, indices: of all examples to evaluate, by which their published versions are found.
        seed: of the evaluation.
    """
    found = {}
    for name, attack in settings.items():
        if not is_corruption(attack):
            found[name] = attack
        elif official is not None and attack.parameters["severities"] == _PUBLISHED:
            found[name] = _published(name, attack, official, labels, indices, seed)
        else:
            parameters = {**attack.parameters, "source": "generated"}
            found[name] = dataclasses.replace(attack, steps=0, parameters=parameters)
    return found


def _published(name: str, attack: Attack, official: OfficialCorruptions, labels, indices, seed: int) -> Attack:
    corruption, severity = attack.parameters["corruption"], attack.parameters["severity"]
    # The runner seeds an example's generator with its index, so that the seed identifies the example.
    places = {derive_seed(seed, 0, f"evaluate {name}", int(index)): place for place, index in enumerate(indices)}
    images: list[np.ndarray] = []

    def look_up(model, x: torch.Tensor, y: torch.Tensor, *, generator: Sequence[torch.Generator]) -> torch.Tensor:
        if not images:
            images.append(official.images(corruption, severity, indices, labels))
        chosen = images[0][[places[each.initial_seed()] for each in generator]]
        pixels = torch.from_numpy(chosen).to(x.device).permute(0, 3, 1, 2)
        if pixels.shape != x.shape:
            shapes = f"{tuple(pixels.shape[1:])} there, {tuple(x.shape[1:])} here"
            raise MoatError(f"{official.path}: images of another shape ({shapes}); prepare both at the same scale")
        return torch.empty_like(x).copy_(pixels).div_(255)

    parameters = {**attack.parameters, **official.describe()}
    return Attack(look_up, eps=None, steps=0, takes_generator=True, parameters=parameters)


def summary(frame: pd.DataFrame, settings: Mapping[str, Attack]) -> dict[str, Any]:
    """Where the corrupted images come from, and mean accuracies per corruption and over all of them.

    Returns:
        ``{}`` without corruptions; else ``{"corruptions": {severities: {"source": …, "mean": {corruption: {"accuracy",
        "low", "high", "n"}}, "overall": {…}}}}``; fractions; the intervals count each image once.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    sources: dict[str, set[str]] = {}
    for name, attack in settings.items():
        if is_corruption(attack):
            parameters = attack.parameters
            by_name = groups.setdefault(parameters["severities"], {})
            by_name.setdefault(parameters["corruption"], []).append(name)
            sources.setdefault(parameters["severities"], set()).add(parameters["source"])
    content = {
        severities: {
            "source": "+".join(sorted(sources[severities])),
            "mean": {corruption: _mean(frame, names) for corruption, names in by_name.items()},
            "overall": _mean(frame, [name for names in by_name.values() for name in names]),
        }
        for severities, by_name in groups.items()
    }
    return {"corruptions": content} if content else {}


def _mean(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    found = mean_accuracy(frame, names)
    low, high = found.interval()
    return {"accuracy": found.mean, "low": low, "high": high, "n": found.n}
