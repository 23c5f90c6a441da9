"""Views: differentiable stand-ins of a mixture that an attack climbs instead of the mixture's own gradient.

A view answers "what would the logits be if …": the route were fixed, the gate were soft, one expert decided alone.
Success is always judged on the model itself. A kind of model gets its views from one function here, registered for
its class; a model from elsewhere can have a method ``attack_views() -> {name: nn.Module}`` of its own.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError
from moat.models.moe import MoeCnn, detached_router
from moat.models.moe.mixtures import AGGREGATIONS, ClassExperts, SynergyOfExperts, WeightedMixture

STRAIGHT, DETACHED, SOFT, AVERAGE = "straight-through", "detached", "soft", "average"


@dataclass(frozen=True)
class View:
    """``module``: images (B, C, H, W) to logits (B, K'); ``labels``: the labels (B,) to lead those logits away from."""

    module: nn.Module
    labels: Callable[[torch.Tensor], torch.Tensor] = torch.clone


class Computed(nn.Module):
    """The logits that ``function(model, x)`` computes with the parts of a model."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model = model
        self.function = function
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.model, x)


class RouterScores(Computed):
    """The scores (B, E) of a model's router, as if they were logits over its experts."""

    def __init__(self, model: nn.Module):
        super().__init__(model, lambda model, x: model.route_logits(x))


def views_of(model: nn.Module) -> dict[str, View]:
    """All views of ``model`` by name; the first, "straight-through", is the model itself."""
    return {STRAIGHT: View(model)} | {
        name: view if isinstance(view, View) else View(view) for name, view in _views(model).items()
    }


def view(model: nn.Module, name: str) -> nn.Module:
    """The module of one view over the model's own classes.

    Raises:
        ConfigError: the model has no such view; names those that it has.
    """
    views = views_of(model)
    if name not in views:
        raise ConfigError(f"{type(model).__name__} has no view {name!r}; it has {', '.join(views)}")
    return views[name].module


@functools.singledispatch
def _views(model: nn.Module) -> dict[str, View | nn.Module]:
    """Any model: what it offers, and fixed routes where it has a module ``router``."""
    own = model.attack_views() if hasattr(model, "attack_views") else {}
    return ({DETACHED: detached_router(model)} if isinstance(getattr(model, "router", None), nn.Module) else {}) | own


# -- one function for each kind of mixture -------------------------------------


@_views.register(MoeCnn)
def _of_moe_cnn(model: MoeCnn) -> dict[str, View | nn.Module]:
    paths = {f"path{e}": Computed(model, functools.partial(moe_path, expert=e)) for e in range(model.experts)}
    return {DETACHED: detached_router(model), SOFT: Computed(model, _soft_paths), **paths}


def moe_path(model: MoeCnn, x: torch.Tensor, *, expert: int) -> torch.Tensor:
    """F_e(x): the logits (B, K) with every image sent to one expert."""
    scores = F.one_hot(torch.full(x.shape[:1], expert, device=x.device), model.experts).to(x.dtype)
    return model.classify(x, scores)


def _soft_paths(model: MoeCnn, x: torch.Tensor) -> torch.Tensor:
    """sum_e softmax(G(x))_e F_e(x): the hard choice made differentiable."""
    weights = F.softmax(model.route_logits(x), 1)
    logits = torch.stack([moe_path(model, x, expert=e) for e in range(model.experts)])
    return (weights.T[..., None] * logits).sum(0)


@_views.register(WeightedMixture)
def _of_weighted(model: WeightedMixture) -> dict[str, View | nn.Module]:
    return {DETACHED: detached_router(model), AVERAGE: Computed(model, _average), **_each_alone(model)}


@_views.register(SynergyOfExperts)
def _of_synergy(model: SynergyOfExperts) -> dict[str, View | nn.Module]:
    return {AVERAGE: Computed(model, _average), SOFT: Computed(model, _soft_confidence), **_each_alone(model)}


def _each_alone(model: nn.Module) -> dict[str, nn.Module]:
    return {f"expert{e}": expert for e, expert in enumerate(model.experts)}


def _average(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mean of the experts' logits: every expert pulls, whatever its weight here."""
    return torch.stack([expert(x) for expert in model.experts]).mean(0)


def _soft_confidence(model: SynergyOfExperts, x: torch.Tensor) -> torch.Tensor:
    """sum_i softmax(R)_i z_i: the confidences R, which the model's own choice hides, in the gradient."""
    logits, trust = model.judge(x)
    weights = F.softmax(trust * F.softmax(logits, -1).amax(-1), 0)
    return (weights[..., None] * logits).sum(0)


@_views.register(ClassExperts)
def _of_class_experts(model: ClassExperts) -> dict[str, View | nn.Module]:
    others = {
        name: Computed(model, functools.partial(_aggregated, aggregate=aggregate))
        for name, aggregate in AGGREGATIONS.items()
        if name != model.aggregation
    }
    return others | {f"expert{n}": _own_question(expert, n) for n, expert in enumerate(model.experts)}


def _aggregated(model: ClassExperts, x: torch.Tensor, *, aggregate) -> torch.Tensor:
    return aggregate(model.answers(x)).T


def _own_question(expert: nn.Module, n: int) -> View:
    """Expert n's own two-way loss: away from "True" for images of class n, away from "False" for all others."""
    return View(expert, labels=lambda y: (y == n).long())
