"""Is there a gradient to follow, through the classifier and through every router, and does it point the right way?"""

from collections.abc import Sequence

import torch

from moat.attacks.parts.objectives import cross_entropy, margin
from moat.attacks.parts.steps import input_gradient, random_start_point
from moat.data.seeding import generator
from moat.evaluation.checks.chance import upper_limit
from moat.evaluation.checks.registry import Finding, check, judged
from moat.evaluation.evidence import Evidence, has_router
from moat.evaluation.runner import classify
from moat.models.moe.detached import detached_router

MAX_USELESS_GRADIENTS = 0.01
# How far the check ``gradient-agreement`` moves every pixel: half a grey level, at which real nets are still straight.
NEAR = 0.5 / 255
# And a step of the checks' PGD, a quarter of epsilon, but no farther than at 8/255: nets are not as straight as that.
STEP, FARTHEST = 1 / 4, 2 / 255
# Random points of the ball at which it does so, for each example.
STARTS = 4
# The change may be so many times more, or less, than the gradient predicts: within half a grey level, and over a step,
# where a narrow MobileNet changes a third of what its gradient predicts.
FACTOR, FACTOR_OF_A_STEP = 2.0, 4.0
# What the gradients of a model with a router follow.
ROUTES = {"_straight_through": "straight through the router", "_detached": "with fixed routes"}
# Honest nets agree with their gradient at 92 % of the points at least, and falsely robust ones at 71 % at most. Over a
# step honest nets do at 64 % at least, and ripples, which half a grey level does not see, at 13 % at most.
LEAST_AGREEING, LEAST_AT_A_STEP = 0.725, 0.4


@check("gradient")
def gradient(evidence: Evidence) -> Finding:
    """At clean images and at random points of the ball, hardly any gradient is zero or NaN.

    Per example these are the gradient of the cross-entropy with respect to the image and, if the model has a router,
    the gradient of the router's margin with respect to the image, and of the cross-entropy with respect to its scores.
    """
    useless: dict[str, int] = {}
    for x, y, indices in evidence.batches():
        draws = [generator(evidence.seed, 0, "gradient check", batch=i) for i in indices]
        for place, kind in (("clean", False), ("random_start", "uniform")):
            point = random_start_point(x, evidence.eps, kind, draws)
            for source, slope in _gradients(evidence.model, point, y).items():
                bad = (slope == 0).all(1) | slope.isnan().any(1)
                useless[source + place] = useless.get(source + place, 0) + int(bad.sum())
    values = {name: count / len(evidence.x) for name, count in useless.items()}
    limits = dict.fromkeys(values, upper_limit(len(evidence.x), MAX_USELESS_GRADIENTS))
    worst = max(values, key=values.__getitem__)
    message = f"the gradient is zero or NaN for {values[worst]:.1%} of the examples at most ({worst.replace('_', ' ')})"
    return judged(values, limits, n=len(evidence.x)), values, limits, message


def _gradients(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Flattened gradients (B, …) by the prefix of their name: "" of the logits, "router_", "to_router_"."""
    found = {"": input_gradient(model, x, cross_entropy(y)).flatten(1)}
    if hasattr(model, "route_logits"):
        found["router_"] = input_gradient(model.route_logits, x, _margin).flatten(1)
    if has_router(model):
        found["to_router_"] = _gradient_at_router(model, x, y)
    return found


def _margin(scores: torch.Tensor) -> torch.Tensor:
    """The best score minus the second best (B,); with a single expert, its score."""
    best = scores.float().topk(min(2, scores.shape[1]), 1).values
    return best[:, 0] - best[:, -1] if scores.shape[1] > 1 else best[:, 0]


def _gradient_at_router(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gradient (B, E) of the cross-entropy with respect to the router's output; zeros if it does not get there."""
    seen: list[torch.Tensor] = []
    with model.router.register_forward_hook(lambda module, inputs, output: seen.append(output)), torch.enable_grad():
        loss = cross_entropy(y)(model(x.detach().requires_grad_())).sum()
    if not (seen and seen[0].requires_grad and loss.requires_grad):
        return torch.zeros(len(x), 1)
    (slope,) = torch.autograd.grad(loss, seen[0], allow_unused=True, materialize_grads=True)
    return slope.flatten(1)


@check("gradient-agreement")
def gradient_agreement(evidence: Evidence) -> Finding:
    """At random points of the ball, the margin changes as its gradient predicts, as far as an attack's step goes.

    An attack climbs where the gradient points. If the function goes elsewhere (noise, defences that optimise inside the
    model, discontinuities, ripples, another function's gradient), it wastes its steps, and the model only seems robust.
    Every pixel is moved by d along the gradient's sign and against it; the margin's change is compared with
    2 d |gradient|_1. That is done for half a grey level and, as a ripple is straight there, for a step of PGD.

    With a router, the better of two gradients counts: the whole one, which soft mixtures need, and that with fixed
    routes, which hard ones do. For how many points the straight-through gradient alone is right is reported.
    """
    places = {
        "": (NEAR, FACTOR, LEAST_AGREEING),
        "_at_a_step": (min(max(evidence.eps * STEP, NEAR), FARTHEST), FACTOR_OF_A_STEP, LEAST_AT_A_STEP),
    }
    distances = [(distance, factor) for distance, factor, _ in places.values()]
    gradients = {"": evidence.attacked}
    if has_router(evidence.model):
        gradients = {"_straight_through": evidence.attacked, "_detached": detached_router(evidence.attacked)}
    shares = {name: _agreement(evidence, attacked, distances) for name, attacked in gradients.items()}
    values, limits, parts = {}, {}, []
    for number, (place, (distance, factor, least)) in enumerate(places.items()):
        found = {f"agreeing{name}{place}": each[number] for name, each in shares.items()}
        best = max(found.values())
        values |= {f"disagreeing{place}": 1 - best, f"agreeing{place}": best, **found}
        limits[f"disagreeing{place}"] = 1 - least
        each = ", ".join(f"{ROUTES[name]}: {share[number]:.1%}" for name, share in shares.items() if name in ROUTES)
        each = f" ({each})" if each else ""
        how = f"by a factor of {factor:g} within {distance * 255:.3g}/255"
        parts.append(f"{how} at {best:.1%} of random points{each}, needed: {least:.1%}")
    message = f"the margin changes as its gradient predicts: {'; '.join(parts)}"
    return judged(values, limits), values, limits, message


def _agreement(evidence: Evidence, attacked: torch.nn.Module, distances: Sequence[tuple[float, float]]) -> list[float]:
    """The share of random points at which the gradient of ``attacked`` predicts how the model's own margin changes.

    Args:
        distances: how far each pixel is moved, and the factor by which the prediction may be wrong.
    """
    agreeing, farthest = [0] * len(distances), max(distance for distance, _ in distances)
    for x, y, indices in evidence.batches():
        draws = [generator(evidence.seed, 0, "gradient-agreement check", batch=i) for i in indices]
        for _ in range(STARTS):
            # All points lie within the ball and within the range of pixels.
            start = random_start_point(x, max(evidence.eps - farthest, 0.0), "uniform", draws)
            start = start.clamp(farthest, 1 - farthest)
            slope = input_gradient(attacked, start, margin(y))
            steepness = slope.flatten(1).abs().sum(1)
            for number, (distance, factor) in enumerate(distances):
                move = distance * slope.sign()
                after, before = (margin(y)(classify(evidence.model, start + way * move)) for way in (1, -1))
                ratio = (after - before) / (2 * distance * steepness)
                agreeing[number] += int(((ratio >= 1 / factor) & (ratio <= factor)).sum())
    return [count / (STARTS * len(evidence.x)) for count in agreeing]
