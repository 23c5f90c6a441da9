"""The views of a model that an attack may use in its place (:mod:`moat.models.moe.views`), by name."""

import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.models.guard import class_name
from moat.models.moe.detached import can_detach_router, detached_router
from moat.models.moe.views import View

STRAIGHT, DETACHED = "straight-through", "detached"


class RouterScores(nn.Module):
    """The scores (B, E) of a model's router, as if they were logits over its experts."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.route_logits(x)


def views_of(model: nn.Module) -> dict[str, View]:
    """All views of ``model`` by name: itself first, then with fixed routes if it has a module ``router``, then its own.

    Its own are those of ``attack_views() -> {name: module or View}``, where it has that method.
    """
    found: dict[str, nn.Module | View] = {STRAIGHT: model}
    if can_detach_router(model):
        found[DETACHED] = detached_router(model)
    if hasattr(model, "attack_views"):
        found |= model.attack_views()
    return {name: view if isinstance(view, View) else View(view) for name, view in found.items()}


def view(model: nn.Module, name: str) -> nn.Module:
    """The module of one view over the model's own classes.

    Raises:
        ConfigError: the model has no such view; names those that it has.
    """
    views = views_of(model)
    if name not in views:
        raise ConfigError(f"{class_name(model)} has no view {name!r}; it has {', '.join(views)}")
    return views[name].module
