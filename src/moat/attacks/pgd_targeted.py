"""PGD towards given classes instead of away from the right one."""

from collections.abc import Iterator

import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.objectives import margin, target_margin
from moat.attacks.parts.steps import Randomness, ascend, ball, draw, generators_of, random_start_point
from moat.base.errors import ConfigError

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "step_size": {"type": "distance", "description": "length of one signed step"},
    "steps": {"type": "count", "description": "number of steps towards each class"},
    "target": {
        "type": ["string", "integer"],
        "minimum": 0,
        "pattern": "^(ordered|random)$",
        "description": "ordered (the nearest wrong class first), random, or the number of a class",
    },
    "targets": {"type": "count", "description": "how many classes are tried in order, at most"},
}


@attack(PARAMETERS)
def pgd_targeted(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    target: str | int = "ordered",
    targets: int = 9,
    generator: Randomness = None,
) -> torch.Tensor:
    """``steps`` signed steps on z_t - z_y for target classes t, in the eps-ball and [0,1], from a uniform start.

    Each example keeps its first success (any wrong class), else the result with the highest margin
    max_{k != y} z_k - z_y. A misclassified example is not attacked again.

    Args: (eps and step_size in pixel units)
        target: "ordered": the wrong classes by their clean logits, the nearest first, up to ``targets`` of them;
            "random": one wrong class per example; or the number of one class for all (an example of that class is
            returned as it is).
    """
    best = x.detach().clone()
    value = torch.full(y.shape, -torch.inf, device=x.device)
    left = torch.arange(len(x), device=x.device)
    for goal in _goals(model, x, y, target, targets, generator):
        left = left[(value[left] <= 0) & (goal[left] != y[left])]
        if not len(left):
            break
        centre = x[left]
        start = random_start_point(centre, eps, True, generators_of(generator, left))
        objective = target_margin(goal[left], y[left])
        found = ascend(model, start, objective, ball(centre, eps), step_size=step_size, steps=steps)
        with torch.no_grad():
            reached = margin(y[left])(model(found)).to(value.dtype)
        better = reached > value[left]
        best[left[better]], value[left[better]] = found[better], reached[better]
    return best


def _goals(model, x, y, target: str | int, targets: int, generator: Randomness) -> Iterator[torch.Tensor]:
    """The target classes (B,), one after the other; the label itself where there is none."""
    with torch.no_grad():
        logits = model(x)
    classes = logits.shape[1]
    if isinstance(target, int):
        if target >= classes:
            raise ConfigError(f"target: {target} is not allowed; the model has the classes 0 to {classes - 1}")
        yield torch.full_like(y, target)
    elif target == "random":
        uniform = draw(torch.empty(len(x), 1, device=x.device), torch.rand, generator)[:, 0]
        # One of the other classes: the label's successors, in a circle.
        yield (y + 1 + (uniform * (classes - 1)).long().clamp(max=classes - 2)) % classes
    else:
        labelled = torch.nn.functional.one_hot(y, classes).bool()
        order = logits.masked_fill(labelled, -torch.inf).argsort(dim=1, descending=True, stable=True)
        yield from order[:, : min(targets, classes - 1)].T
