"""An attack run several times, or several attacks in turn, each on the examples that are still classified correctly."""

from collections.abc import Callable, Mapping

import torch

from moat.attacks.parts.objectives import make_objective
from moat.attacks.parts.steps import Randomness, generators_of
from moat.models.outputs import predicted_class

Stage = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, Randomness], torch.Tensor]


def with_restarts(
    single_run: Callable[[torch.Tensor, torch.Tensor, Randomness], torch.Tensor],
    restarts: int,
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss: str,
    generator: Randomness,
) -> torch.Tensor:
    """``single_run(x, y, generator)`` up to ``restarts`` times: each example's first success, else its highest loss.

    A misclassified example is not attacked again. Call it inside :func:`moat.attacks.parts.steps.frozen`.

    Args:
        loss: a key of ``OBJECTIVES``, by which results that are still classified correctly are compared.
    """
    best = single_run(x, y, generator)
    if restarts == 1 or not len(x):
        return best
    value, misclassified = _score(model, x, best, y, loss)
    for _ in range(restarts - 1):
        left = torch.nonzero(~misclassified)[:, 0]
        if not len(left):
            break
        candidate = single_run(x[left], y[left], generators_of(generator, left))
        new_value, now_misclassified = _score(model, x[left], candidate, y[left], loss)
        better = now_misclassified | (new_value > value[left])
        best[left[better]] = candidate[better]
        value[left[better]] = new_value[better]
        misclassified[left] = now_misclassified
    return best


def _score(model, x, x_adv, y, loss) -> tuple[torch.Tensor, torch.Tensor]:
    """The objective's value (B,), and which examples are misclassified (B,)."""
    with torch.no_grad():
        logits = model(x_adv)
        return make_objective(loss, model, x, y)(logits), predicted_class(logits) != y


def run_cascade(
    stages: Mapping[str, Stage],
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    generator: Randomness = None,
    *,
    batch_size: int | None = None,
) -> tuple[torch.Tensor, dict[str, int]]:
    """Each example's first success over the stages in turn, and how many examples each stage got misclassified.

    Examples that are misclassified without an attack are counted under "clean" and not attacked; they, and those that
    survive all stages, are returned as they are in ``x``. Call it inside :func:`moat.attacks.parts.steps.frozen`.

    Args:
        batch_size: examples that a stage gets at once; all that are left, if not given.
    """
    found = x.clone()
    left = _correct(model, x, y, torch.arange(len(x), device=x.device), batch_size)
    misclassified = {"clean": len(x) - len(left)}
    for name, stage in stages.items():
        before = left
        for part in left.split(batch_size or max(1, len(left))) if len(left) else ():
            found[part] = stage(model, x[part], y[part], generators_of(generator, part)).to(x.dtype)
        left = _correct(model, found, y, before, batch_size)
        found[left] = x[left]
        misclassified[name] = len(before) - len(left)
    return found, misclassified


def _correct(model, x, y, among: torch.Tensor, batch_size: int | None) -> torch.Tensor:
    """Which of the examples ``among`` the model classifies correctly."""
    with torch.no_grad():
        parts = among.split(batch_size or max(1, len(among))) if len(among) else ()
        correct = [part[predicted_class(model(x[part])) == y[part]] for part in parts]
    return torch.cat(correct) if correct else among
