"""Square Attack, L-infinity: random search without gradients. Source: Andriushchenko et al., arXiv 1912.00049.

The search is that of the package ``pyautoattack``, with the same squares and verdicts in less time.
"""

import functools
from collections.abc import Sequence

import torch
from pyautoattack.square import SquareAttack

from moat.attacks.autoattack.adapter import Attacked, examples_are_independent, own_random_numbers
from moat.attacks.autoattack.square import SquareSearch
from moat.attacks.parts.arguments import attack
from moat.attacks.parts.steps import Randomness, draw, generators_of
from moat.models.outputs import predicted_class

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "n_queries": {"type": "count", "description": "forward passes"},
    "seed": {"type": "integer", "minimum": 0, "description": "of the random numbers"},
}


@attack(PARAMETERS)
@torch.no_grad()
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
    """
    if isinstance(generator, torch.Generator):
        seed, generator = int(torch.randint(2**62, (), generator=generator, device=generator.device)), None
    found = x.clone()
    with own_random_numbers(x.device, seed):
        attacked = Attacked(model, dtype=x.dtype)
        correct = torch.nonzero(predicted_class(attacked(x)) == y)[:, 0]
        if len(correct):
            images = x[correct].float().contiguous()
            kind = SquareSearch if examples_are_independent(attacked, images) else SquareAttack
            search = kind(attacked, norm="Linf", n_queries=n_queries, eps=eps, resc_schedule=False)
            if generator is not None:
                search.random_choice = functools.partial(_random_signs, search, generators_of(generator, correct))
            search.init_hyperparam(images)
            found[correct] = search.attack_single_run(images, y[correct])[1].to(x.dtype)
    return found


def _random_signs(search, generators: Sequence[torch.Generator], shape: Sequence[int]) -> torch.Tensor:
    """The package's random signs, but the first stripes drawn for each example by itself."""
    if len(shape) < 4:
        return type(search).random_choice(search, shape)
    like = torch.empty(*shape, device=search.device)
    return torch.sign(2 * draw(like, torch.rand, generators) - 1)
