"""Square Attack, L-infinity: random search without gradients. Source: Andriushchenko et al., arXiv 1912.00049.

The search is that of the package ``pyautoattack``, with the same squares and verdicts in less time.
"""

import functools
from collections.abc import Sequence

import torch

from moat.attacks.autoattack.adapter import Attacked, examples_are_independent, own_random_numbers
from moat.attacks.parts.checks import check_batch, check_budget, check_iterations
from moat.attacks.parts.steps import Randomness, draw, frozen


def square(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    n_queries: int = 5000,
    seed: int = 0,
    generator: Randomness = None,
) -> torch.Tensor:
    """Random squares of +-``eps`` (pixel units), kept where they lower the margin; ``n_queries`` forward passes.

    Misclassified examples are returned as they are, the others at the lowest margin that was found.

    Args:
        seed: of the numbers drawn. Without ``generator`` they and the result are exactly the package's.
        generator: one per example draws its first stripes, and the squares come from a sequence of ``seed`` that all
            examples share: results do not depend on the batch. A single one replaces ``seed``.

    Raises:
        ConfigError: a parameter out of range.
        ValueError: images outside [0,1] or labels that do not fit.
    """
    check_budget(eps=eps)
    check_iterations(n_queries=n_queries)
    check_batch(x, y, generator)
    if isinstance(generator, torch.Generator):
        seed, generator = int(torch.randint(2**62, (), generator=generator, device=generator.device)), None
    found = x.clone()
    with frozen(model), torch.no_grad(), own_random_numbers(x.device, seed):
        attacked = Attacked(model)
        right = torch.nonzero(attacked(x).argmax(1) == y)[:, 0]
        if len(right):
            draws = None if generator is None else [generator[index] for index in right.tolist()]
            images = x[right].float().contiguous()
            search = _search(attacked, eps, n_queries, draws, examples_are_independent(attacked, images))
            search.init_hyperparam(images)
            found[right] = search.attack_single_run(images, y[right])[1].to(x.dtype)
    return found


def _search(model: Attacked, eps: float, n_queries: int, draws: Sequence[torch.Generator] | None, shortcuts: bool):
    """The package's attack; with ``draws``, its first stripes drawn for each example by itself."""
    from pyautoattack.square import SquareAttack

    from moat.attacks.autoattack.square import SquareSearch

    search = (SquareSearch if shortcuts else SquareAttack)(
        model, norm="Linf", n_queries=n_queries, eps=eps, resc_schedule=False
    )
    if draws is not None:
        search.random_choice = functools.partial(_random_signs, search, draws)
    return search


def _random_signs(search, draws: Sequence[torch.Generator], shape: Sequence[int]) -> torch.Tensor:
    if len(shape) < 4:
        return type(search).random_choice(search, shape)
    like = torch.empty(*shape, device=search.device)
    return torch.sign(2 * draw(like, torch.rand, draws) - 1)
