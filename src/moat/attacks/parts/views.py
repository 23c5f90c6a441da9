"""The views of a model: what an attack can maximize the loss of instead of the model itself.

Success is always scored on the model itself. Each kind of mixture names its own views, see
:mod:`moat.models.moe.views`.
"""

from torch import nn

from moat.base.errors import ConfigError
from moat.models.moe.detached import detached_router
from moat.models.moe.views import ComputedView, View

STRAIGHT, DETACHED = "straight-through", "detached"


def router_scores(model: nn.Module) -> nn.Module:
    """The scores (B, E) of a model's router, as if they were logits over its experts."""
    return ComputedView(model, lambda model, x: model.route_logits(x))


def views_of(model: nn.Module) -> dict[str, View]:
    """All views of ``model`` by name: first the model itself, then one with fixed routes where it has a ``router``."""
    found: dict[str, View | nn.Module] = {STRAIGHT: model}
    if isinstance(getattr(model, "router", None), nn.Module):
        found[DETACHED] = detached_router(model)
    if hasattr(model, "attack_views"):
        found |= model.attack_views()
    return {name: each if isinstance(each, View) else View(each) for name, each in found.items()}


def view(model: nn.Module, name: str) -> nn.Module:
    """The module of one view over the model's own classes.

    Raises:
        ConfigError: the model has no such view; names those that it has.
    """
    views = views_of(model)
    if name not in views:
        raise ConfigError(f"{type(model).__name__} has no view {name!r}; it has {', '.join(views)}")
    return views[name].module
