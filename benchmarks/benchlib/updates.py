"""Updates of the project's methods on random images, and how far another implementation's update is from them."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import moat.methods
from benchlib import timing
from moat import models
from moat.base.numbers import parse_number
from moat.config.project import Project
from moat.config.recipes import merge, resolve_recipe
from moat.kernels import for_training
from moat.methods.base import Method, Step


def recipe_of(root: Path, method: str, **changes: Any) -> dict[str, Any]:
    """The recipe at scale paper, with ``changes`` merged into it."""
    return merge(resolve_recipe(Project(root), "paper", method), changes)


def standing_still(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with a learning rate of almost 0: on random labels the weights would diverge and end the run."""
    keys = [key for key in ("optimizer", "router_optimizer") if key in recipe]
    return {**recipe, **{key: {**recipe[key], "lr": 1e-6} for key in keys}}


def attack_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The attack's eps and step_size as numbers, and its number of steps."""
    numbers = {key: parse_number(recipe["attack"][key], where=f"attack.{key}") for key in ("eps", "step_size")}
    return {**numbers, "steps": recipe["attack"]["steps"]}


def begin(name: str, recipe: Mapping[str, Any], model: nn.Module) -> Method:
    """The method on ``model``, which is put into channels-last and training mode.

    On a model in float64 the logits are not rounded to float32 as they are in training.
    """
    kind = moat.methods.get(recipe["class"])
    model = for_training(model.to(memory_format=torch.channels_last))
    if next(model.parameters()).dtype == torch.float64:
        kind = type("Wide", (kind,), {"logits": _logits, "classify": _classify})
    method = kind(model, recipe)
    method.train_mode()
    return method


def resnet18(width: int) -> nn.Module:
    """A fresh ResNet-18 with ``width`` channels in its first stage; 64 is the full net."""
    torch.manual_seed(0)
    return models.build("resnet18", 10, width=width / 64)


def batch(images: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (N, 3, 32, 32) and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(images, 3, 32, 32, generator=generator, dtype=dtype), torch.arange(images) % 10


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def step(number: int = 0) -> Step:
    """A step of a long training."""
    return Step(0, 0, 1, number, 1_000_000, torch.device("cpu"))


def repeated(method: Method, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """A call that performs the next update."""
    numbers, x = itertools.count(), channels_last(x)
    return lambda: method.update(x, y, step(next(numbers)))


def largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Over all parameters and buffers, relative to the largest value of each tensor (or to 1, if that is larger)."""
    other = theirs.state_dict()
    return max(
        float((value.double() - other[name].double()).abs().max() / other[name].double().abs().max().clamp(min=1))
        for name, value in ours.state_dict().items()
        if value.numel()
    )


def milliseconds(taken: Mapping[str, list[float]], images: int) -> dict[str, float]:
    """Median per image."""
    return {name: round(1000 * timing.summary(values)["median"] / images, 2) for name, values in taken.items()}


def _logits(self: Method, x: torch.Tensor, model: nn.Module | None = None) -> torch.Tensor:
    return (self.model if model is None else model)(x)


def _classify(self: Method, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return self.model.classify(x, scores)
