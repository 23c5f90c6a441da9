"""The attack that knows the mixture: PGD against every view of the model, scored on the model itself.

Source: the checklist of adaptive attacks of Tramèr et al., arXiv 2002.08347: no single gradient of a routed model
can be trusted, so each is tried, and an example counts as robust only if it survives all.
"""

from collections.abc import Mapping

import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.cascade import Stage, run_cascade, with_restarts
from moat.attacks.parts.objectives import make_objective, margin
from moat.attacks.parts.steps import Randomness, ascend, ball, frozen, random_start_point
from moat.attacks.parts.views import DETACHED, RouterScores, views_of
from moat.base.errors import ConfigError
from moat.models.guard import class_name
from moat.models.moe.views import View

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "step_size": {"type": "distance", "description": "length of one signed step"},
    "steps": {"type": "count", "description": "steps against each view"},
    "restarts": {"type": "count", "description": "independent starts, the worst kept per example"},
    "eot": {"type": "count", "description": "forward passes over which each gradient is averaged"},
    "loss": {"enum": ["ce", "margin"], "description": "what is maximized"},
}
# Passes through the net for one image, of 100 steps and two experts: PGD through the router, with the router detached,
# on the soft mixture (two passes for one), on each path alone, and after routes were flipped (twice as many steps).
PASSES = 1600


@attack(PARAMETERS)
def moe_adaptive(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int = 100,
    restarts: int = 1,
    eot: int = 1,
    loss: str = "ce",
    generator: Randomness = None,
) -> torch.Tensor:
    """The per-example worst case over PGD on every view of ``model`` and over flipping its route first.

    The views are those of :func:`moat.attacks.parts.views.views_of`: the model's own gradient, its router's scores
    detached, soft mixtures, each expert alone. The last stage maximizes the margin of the router until another expert
    would be chosen, and the loss from there. Misclassified examples are not attacked again; those that survive are
    returned as they are.

    Args: (eps and step_size in pixel units)
        steps, restarts, eot: of each stage, as in :func:`moat.attacks.pgd`; restarts are scored on the model.
        loss: "ce" or "margin".

    Raises:
        ConfigError: a model that has no views but itself.
        MoatError: a gradient that is not a number.
    """
    parts = stages(model, eps=eps, step_size=step_size, steps=steps, restarts=restarts, eot=eot, loss=loss)
    return run_cascade(parts, model, x, y, generator)[0]


def stages(model: torch.nn.Module, *, restarts: int, loss: str, **options) -> Mapping[str, Stage]:
    """One attack per view, and the router flip where there are routes: name -> (model, x, y, generator) -> x_adv."""
    views = views_of(model)
    if len(views) == 1:
        raise ConfigError(f"moe_adaptive: {class_name(model)} has no experts and no router that are known")
    found = {name: _attack_on(view, restarts, loss, **options) for name, view in views.items()}
    if hasattr(model, "route_logits"):
        found["router-flip"] = _attack_after_flip(views, restarts, loss, **options)
    return found


def _attack_on(view: View, restarts: int, loss: str, *, eps: float, **options) -> Stage:
    """PGD on a view."""

    def stage(model, x, y, generator: Randomness) -> torch.Tensor:
        def single_run(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
            start = random_start_point(x, eps, True, generator)
            objective = make_objective(loss, view.module, x, view.labels(y))
            return ascend(view.module, start, objective, ball(x, eps), **options)

        with frozen(model):
            return with_restarts(single_run, restarts, model, x, y, loss, generator)

    return stage


def _attack_after_flip(views: Mapping[str, View], restarts: int, loss: str, *, eps: float, **options) -> Stage:
    """PGD from where the router would choose another expert. It keeps that route, if its scores can be detached."""

    def stage(model, x, y, generator: Randomness) -> torch.Tensor:
        router = RouterScores(model)
        follow = views[DETACHED].module if DETACHED in views else model

        def single_run(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
            with torch.no_grad():
                chosen = router(x).argmax(1)
            start, bounds = random_start_point(x, eps, True, generator), ball(x, eps)
            flipped = ascend(router, start, margin(chosen), bounds, **options)
            return ascend(follow, flipped, make_objective(loss, follow, x, y), bounds, **options)

        with frozen(model):
            return with_restarts(single_run, restarts, model, x, y, loss, generator)

    return stage
