"""Attacks that are several attacks in turn, each on the examples that those before have not broken."""

from collections.abc import Callable, Mapping

import torch

from moat.attacks.parts.steps import Randomness

Stage = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, Randomness], torch.Tensor]


def in_turn(
    stages: Mapping[str, Stage],
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    generator: Randomness = None,
    *,
    batch_size: int | None = None,
) -> tuple[torch.Tensor, dict[str, int]]:
    """Run the stages on what is left; return each example's first success, and how many each stage has broken.

    Examples that are misclassified without an attack count as broken by "clean" and are not attacked; they, and
    those that survive, are returned as they are in ``x``. Call it inside :func:`moat.attacks.parts.steps.frozen`.

    Args:
        batch_size: examples that a stage gets at once; all that are left if not given.
    """
    found = x.clone()
    left = _right(model, x, y, torch.arange(len(x), device=x.device), batch_size)
    broken = {"clean": len(x) - len(left)}
    for name, stage in stages.items():
        before = left
        for part in left.split(batch_size or max(1, len(left))) if len(left) else ():
            found[part] = stage(model, x[part], y[part], of_examples(generator, part)).to(x.dtype)
        left = _right(model, found, y, before, batch_size)
        found[left] = x[left]
        broken[name] = len(before) - len(left)
    return found, broken


def of_examples(generator: Randomness, indices: torch.Tensor) -> Randomness:
    """The generators of some examples, where there is one for each."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[index] for index in indices.tolist()]


def _right(model, x, y, among: torch.Tensor, batch_size: int | None) -> torch.Tensor:
    """Which of the examples ``among`` the model gets right."""
    with torch.no_grad():
        parts = among.split(batch_size or max(1, len(among))) if len(among) else ()
        right = [part[model(x[part]).argmax(1) == y[part]] for part in parts]
    return torch.cat(right) if right else among
