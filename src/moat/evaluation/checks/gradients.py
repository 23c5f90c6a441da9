"""Is there a gradient to follow, through the classifier and through every router?"""

import torch

from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import input_gradient, random_start_point
from moat.data.seeding import generator
from moat.evaluation.checks.chance import upper_limit
from moat.evaluation.checks.registry import Finding, check, within
from moat.evaluation.evidence import Evidence, has_router

MAX_USELESS_GRADIENTS = 0.01


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
    return within(values, limits), values, limits, message


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
