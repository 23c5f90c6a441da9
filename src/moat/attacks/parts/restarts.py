"""Several runs of a randomised attack, the worst case kept per example."""

from collections.abc import Callable

import torch

from moat.attacks.parts.objectives import make_objective
from moat.attacks.parts.steps import Randomness


def worst_of(
    once: Callable[[torch.Tensor, torch.Tensor, Randomness], torch.Tensor],
    restarts: int,
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss: str,
    generator: Randomness,
) -> torch.Tensor:
    """Run ``once(x, y, generator)`` up to ``restarts`` times; keep each example's first success, else its highest loss.

    An example already broken is not attacked again. Call it inside :func:`moat.attacks.parts.steps.frozen`.
    """
    best = once(x, y, generator)
    if restarts == 1 or not len(x):
        return best
    value, broken = _judge(model, x, best, y, loss)
    for _ in range(restarts - 1):
        left = torch.nonzero(~broken)[:, 0]
        if not len(left):
            break
        candidate = once(x[left], y[left], _of(generator, left))
        new_value, new_broken = _judge(model, x[left], candidate, y[left], loss)
        better = new_broken | (new_value > value[left])
        best[left[better]] = candidate[better]
        value[left[better]] = new_value[better]
        broken[left] = new_broken
    return best


def _judge(model, x, x_adv, y, loss) -> tuple[torch.Tensor, torch.Tensor]:
    """The objective's value (B,) and whether the prediction is wrong (B,)."""
    with torch.no_grad():
        logits = model(x_adv)
        return make_objective(loss, model, x, y)(logits), logits.argmax(1) != y


def _of(generator: Randomness, indices: torch.Tensor) -> Randomness:
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[index] for index in indices.tolist()]
