"""Corruptions as settings of a suite: the published images where they are prepared, else generated ones."""

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from moat.attacks.parts.setting import Attack
from moat.base.errors import MoatError
from moat.data.corruptions.severities import setting_name
from moat.data.generated_corruptions import GeneratedCorruptions
from moat.data.official_corruptions import OfficialCorruptions
from moat.data.seeding import derive_seed
from moat.evaluation.plan import SuitePlan
from moat.evaluation.statistics import mean_accuracy
from moat.evaluation.target import EvaluationTarget

log = logging.getLogger(__name__)

# The only benchmark whose images are published with these severities.
_PUBLISHED = "cifar10-c"
# What corrupts images, beside our own code.
_LIBRARIES = ("numpy", "pillow", "scipy", "torch")


def is_corruption(attack: Attack) -> bool:
    return attack.parameters.get("attack") == "corruption"


def with_images(
    plan: SuitePlan,
    target: EvaluationTarget,
    folder: Path | None = None,
    *,
    sources: Callable[[], Mapping[str, str]] = dict,
) -> SuitePlan:
    """The plan with corruptions on published images, if their prepared file lies beside the target's dataset.

    Args:
        folder: where images that are generated instead are kept for the next evaluation of them; None: nowhere.
        sources: returns hashes of the code that generates them.
    """
    if not any(map(is_corruption, plan.settings.values())):
        return plan
    official = OfficialCorruptions.beside(target.data_path)
    if official and (missing := official.lacks(target.indices)):
        n = len(target.indices)
        log.warning("%s lacks %d of %d images: corruptions are generated instead", official.path, missing, n)
        official = None
    kept = {} if folder is None else _generated(plan, target, folder, sources())
    settings = prepared(plan.settings, official, kept, labels=target.y.tolist(), indices=target.indices)
    record = {name: dict(attack.parameters) for name, attack in settings.items()}
    return dataclasses.replace(plan, settings=settings, record={**plan.record, **record})


def _generated(
    plan: SuitePlan, target: EvaluationTarget, folder: Path, sources: Mapping[str, str]
) -> dict[str, GeneratedCorruptions]:
    """By severities, the images under those settings of a plan."""
    wanted: dict[str, dict[str, tuple[str, int]]] = {}
    reach = 0
    for name, attack in plan.settings.items():
        if is_corruption(attack):
            parameters = attack.parameters
            reach = max(reach, min(len(target.x), attack.limit or len(target.x)))
            named = parameters["corruption"], parameters["severity"]
            # Its random numbers are those of that name, and no other.
            if name == setting_name(*named, parameters["severities"]):
                wanted.setdefault(parameters["severities"], {})[name] = named
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    made_of = {"data": target.data_sha256, "sources": dict(sources), "libraries": libraries}
    x, indices = target.x[:reach].numpy(), target.indices[:reach]
    return {
        severities: GeneratedCorruptions(folder, x, indices, severities, settings, made_of)
        for severities, settings in wanted.items()
    }


def prepared(
    settings: Mapping[str, Attack],
    official: OfficialCorruptions | None,
    generated: Mapping[str, GeneratedCorruptions] | None = None,
    *,
    labels: Sequence[int],
    indices: Sequence[int],
    seed: int = 0,
) -> dict[str, Attack]:
    """The settings of a suite, its corruptions with the source of their images; other settings unchanged.

    Args:
        official: published images, used for settings with CIFAR-10-C's severities.
        generated: images that are generated once, by their severities, used for other settings.
        labels, indices: of all examples to evaluate, by which their published versions are found.
        seed: of the evaluation.
    """
    found, generated = {}, generated or {}

    # Settings are measured one after the other: of the images, those of one are kept.
    @functools.lru_cache(maxsize=1)
    def images(name: str) -> np.ndarray:
        parameters = found[name].parameters
        if parameters["source"] == "generated":
            return generated[parameters["severities"]].images(name)
        return official.images(parameters["corruption"], parameters["severity"], indices, labels)

    for name, attack in settings.items():
        if not is_corruption(attack):
            found[name] = attack
            continue
        changes: dict[str, Any] = {"steps": 0, "parameters": {**attack.parameters, "source": "generated"}}
        severities, path = attack.parameters["severities"], None
        if official is not None and severities == _PUBLISHED:
            path, changes["parameters"] = official.path, {**attack.parameters, **official.describe()}
        elif severities in generated and name in generated[severities].wanted:
            path = generated[severities].path
        if path is not None:
            changes["function"] = _look_up(name, images, path, indices, seed)
        found[name] = dataclasses.replace(attack, **changes)
    return found


def _look_up(name: str, images: Callable[[str], np.ndarray], path: Path, indices: Sequence[int], seed: int):
    """The attack that returns an example's corrupted image, of all of which ``images(name)`` has one."""
    # The runner seeds an example's generator with its index, so that the seed identifies the example.
    places = {derive_seed(seed, 0, f"evaluate {name}", int(index)): place for place, index in enumerate(indices)}

    def look_up(model, x: torch.Tensor, y: torch.Tensor, *, generator: Sequence[torch.Generator]) -> torch.Tensor:
        chosen = images(name)[[places[each.initial_seed()] for each in generator]]
        pixels = torch.from_numpy(chosen).to(x.device).permute(0, 3, 1, 2)
        if pixels.shape != x.shape:
            shapes = f"{tuple(pixels.shape[1:])} there, {tuple(x.shape[1:])} here"
            raise MoatError(f"{path}: images of another shape ({shapes}); prepare both at the same scale")
        return torch.empty_like(x).copy_(pixels).div_(255)

    return look_up


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
