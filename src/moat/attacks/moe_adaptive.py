"""The attack that knows the mixture: PGD against every view of the model, judged on the model itself.

Source: the checklist of adaptive attacks of Tramèr et al., arXiv 2002.08347: no single gradient of a routed model
can be trusted, so each is tried, and an example counts as robust only if it survives all.
"""

from collections.abc import Mapping

import torch

from moat.attacks.parts.checks import check_batch, check_budget, check_choice, check_iterations
from moat.attacks.parts.objectives import OBJECTIVES, make_objective, margin
from moat.attacks.parts.restarts import worst_of
from moat.attacks.parts.stages import Stage, in_turn
from moat.attacks.parts.steps import Randomness, ascend, frozen, random_start_point
from moat.attacks.parts.views import DETACHED, RouterScores, views_of
from moat.base.errors import ConfigError
from moat.models.moe.views import View


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
    detached, soft mixtures, each expert alone. The last stage climbs the margin of the router until another expert
    would be chosen, and the loss from there. Examples that are misclassified anyway are not attacked; those that
    survive are returned as they are.

    Args: (eps and step_size in pixel units)
        steps, restarts, eot: of each stage, as in :func:`moat.attacks.pgd`; restarts are judged on the model.
        loss: "ce" or "margin".

    Raises:
        ConfigError: a parameter out of range, or a model that has no views but itself.
        ValueError: images outside [0,1] or labels that do not fit.
        MoatError: a gradient that is not a number.
    """
    check_budget(eps=eps, step_size=step_size)
    check_iterations(steps=steps, restarts=restarts, eot=eot)
    check_choice(loss=(loss, sorted(OBJECTIVES.keys() - {"kl"})))
    check_batch(x, y, generator)
    parts = stages(model, eps=eps, step_size=step_size, steps=steps, restarts=restarts, eot=eot, loss=loss)
    with frozen(model):
        return in_turn(parts, model, x, y, generator)[0]


def stages(model: torch.nn.Module, *, restarts: int, loss: str, **options) -> Mapping[str, Stage]:
    """One attack per view, and the router flip where there are routes: name -> (model, x, y, generator) -> x_adv."""
    views = views_of(model)
    if len(views) == 1:
        raise ConfigError(f"moe_adaptive: {type(model).__name__} has no experts and no router that are known")
    found = {name: _against(view, restarts, loss, **options) for name, view in views.items()}
    if hasattr(model, "route_logits"):
        found["router-flip"] = _after_a_flip(views, restarts, loss, **options)
    return found


def _against(view: View, restarts: int, loss: str, *, eps: float, **options) -> Stage:
    """PGD on a view."""

    def attack(model, x, y, generator: Randomness) -> torch.Tensor:
        def once(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
            start = random_start_point(x, eps, True, generator)
            objective = make_objective(loss, view.module, x, view.labels(y))
            return ascend(view.module, x, start, objective, eps=eps, **options)

        with frozen(model):
            return worst_of(once, restarts, model, x, y, loss, generator)

    return attack


def _after_a_flip(views: Mapping[str, View], restarts: int, loss: str, *, eps: float, **options) -> Stage:
    """PGD from where the router would choose another expert. It holds that route, if its scores can be detached."""

    def attack(model, x, y, generator: Randomness) -> torch.Tensor:
        router = RouterScores(model)
        follow = views[DETACHED].module if DETACHED in views else model

        def once(x: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
            with torch.no_grad():
                chosen = router(x).argmax(1)
            start = random_start_point(x, eps, True, generator)
            flipped = ascend(router, x, start, margin(chosen), eps=eps, **options)
            return ascend(follow, x, flipped, make_objective(loss, follow, x, y), eps=eps, **options)

        with frozen(model):
            return worst_of(once, restarts, model, x, y, loss, generator)

    return attack
