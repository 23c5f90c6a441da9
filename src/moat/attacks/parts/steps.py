"""The parts that gradient attacks are made of: frozen model, start, gradient, signed step, projection."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from moat.attacks.parts.objectives import Objective
from moat.base.errors import MoatError

Randomness = torch.Generator | Sequence[torch.Generator] | None

STARTS = (True, False, "uniform", "normal")
NORMAL_START_SCALE = 0.001


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside the block; everything as it was after it.

    Every submodule's mode and every parameter's ``requires_grad`` is put back, also after an exception;
    batch norm statistics and ``.grad`` are never touched.
    """
    modes = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, requires_grad in required:
            if requires_grad:
                parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)


def ascend(
    model: torch.nn.Module,
    x: torch.Tensor,
    start: torch.Tensor,
    objective: Objective,
    *,
    eps: float,
    step_size: float,
    steps: int,
    eot: int = 1,
) -> torch.Tensor:
    """``steps`` times: x_adv <- clip(x_adv + step_size * sign(gradient)), within the eps-ball around x and [0,1].

    Raises:
        MoatError: a gradient that is not a number, in any step; names how many examples are concerned.
    """
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = start.detach().clone()
    bad = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        gradient = input_gradient(model, x_adv, objective, eot)
        # The sign of NaN is 0: unnoticed, a broken model would pass for a robust one.
        bad |= gradient.isnan().flatten(1).any(1)
        x_adv = torch.clamp(x_adv + gradient.sign_().mul_(step_size), min=lower, max=upper)
    # Looked at once, at the end: each look makes a GPU wait.
    if bad.any():
        raise MoatError(f"the attack's gradient is not a number for {int(bad.sum())} of {len(bad)} examples")
    return x_adv


def input_gradient(model: torch.nn.Module, x: torch.Tensor, objective: Objective, eot: int = 1) -> torch.Tensor:
    """Gradient of the summed objective with respect to ``x`` alone, summed over ``eot`` forward passes.

    Zero for a model whose output does not depend differentiably on its input: it is not this function's
    business to hide that, and the gradient check reports it.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        # The sum, not the mean: in evaluation mode examples do not interact, and nothing underflows.
        value = sum(objective(model(x)).sum() for _ in range(eot))
        if not value.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True, materialize_grads=True)
    return gradient


def random_start_point(x: torch.Tensor, eps: float, kind: bool | str, generator: Randomness) -> torch.Tensor:
    """``x`` plus noise of a kind of ``STARTS``, within the eps-ball and [0,1]."""
    if kind is False:
        return x
    if kind == "normal":
        noise = draw(x, torch.randn, generator).mul_(NORMAL_START_SCALE).clamp_(-eps, eps)
    else:
        noise = draw(x, torch.rand, generator).mul_(2).sub_(1).mul_(eps)
    return (x + noise).clamp_(0, 1)


def draw(like: torch.Tensor, distribution, generator: Randomness) -> torch.Tensor:
    """Numbers from ``torch.rand`` or ``torch.randn`` in the shape, type, device and memory format of ``like``.

    They are drawn in logical (row-major) order where the generator lives: the memory format does not matter.
    With one generator per example, neither does the rest of the batch.
    """
    noise = torch.empty_like(like)
    if generator is None:
        return noise.copy_(distribution(like.shape, dtype=like.dtype, device=like.device))
    if isinstance(generator, torch.Generator):
        return noise.copy_(_draw_one(like.shape, like.dtype, distribution, generator))
    if len(generator):
        noise.copy_(torch.stack([_draw_one(like.shape[1:], like.dtype, distribution, each) for each in generator]))
    return noise


def _draw_one(shape: torch.Size, dtype: torch.dtype, distribution, generator: torch.Generator) -> torch.Tensor:
    return distribution(shape, dtype=dtype, device=generator.device, generator=generator)
