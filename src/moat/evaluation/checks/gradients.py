"""Is there a gradient to follow: from the logits, and from every router?"""

import torch

from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import input_gradient, random_start_point
from moat.data.seeding import generator
from moat.evaluation.checks.chance import most_allowed
from moat.evaluation.checks.registry import Finding, check, keeps
from moat.evaluation.evidence import Evidence, has_router

MOST_ZERO_GRADIENTS = 0.01


@check("gradient")
def gradient(evidence: Evidence) -> Finding:
    """Gradients exist at clean images and at random points of the ball, hardly ever zero or NaN.

    Asked for are, example by example: the cross-entropy's towards the image; where there is a router, that of its
    two best scores' difference towards the image, and the cross-entropy's towards its scores.
    """
    useless: dict[str, int] = {}
    for x, y, indices in evidence.batches():
        draws = [generator(evidence.seed, 0, "gradient check", batch=i) for i in indices]
        for place, kind in (("clean", False), ("random_start", "uniform")):
            point = random_start_point(x, evidence.eps, kind, draws)
            for what, slope in _slopes(evidence.model, point, y).items():
                bad = (slope == 0).all(1) | slope.isnan().any(1)
                useless[what + place] = useless.get(what + place, 0) + int(bad.sum())
    values = {where: count / len(evidence.x) for where, count in useless.items()}
    limits = dict.fromkeys(values, most_allowed(len(evidence.x), MOST_ZERO_GRADIENTS))
    worst = max(values, key=values.__getitem__)
    message = f"the gradient is zero or NaN for {values[worst]:.1%} of the examples at most ({worst.replace('_', ' ')})"
    return keeps(values, limits), values, limits, message


def _slopes(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients (B, …) flattened, by the beginning of their name: "" of the logits, "router_", "to_router_"."""
    slopes = {"": input_gradient(model, x, cross_entropy(y)).flatten(1)}
    if hasattr(model, "route_logits"):
        slopes["router_"] = input_gradient(model.route_logits, x, _lead).flatten(1)
    if has_router(model):
        slopes["to_router_"] = _towards_scores(model, x, y)
    return slopes


def _lead(scores: torch.Tensor) -> torch.Tensor:
    """How far the best score is ahead (B,); with a single expert, that score."""
    best = scores.float().topk(min(2, scores.shape[1]), 1).values
    return best[:, 0] - best[:, -1] if scores.shape[1] > 1 else best[:, 0]


def _towards_scores(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gradient (B, E) of the cross-entropy with respect to the router's output; zeros where none arrives."""
    seen: list[torch.Tensor] = []
    hook = model.router.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.enable_grad():
            value = cross_entropy(y)(model(x.detach().requires_grad_())).sum()
    finally:
        hook.remove()
    if not (seen and seen[0].requires_grad and value.requires_grad):
        return torch.zeros(len(x), 1)
    (slope,) = torch.autograd.grad(value, seen[0], allow_unused=True, materialize_grads=True)
    return slope.flatten(1)
