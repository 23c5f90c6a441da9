"""What gradient attacks share: a frozen model, a random start, and signed gradient steps within bounds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from moat.base.errors import MoatError
from moat.models.outputs import with_gradient

Randomness = torch.Generator | Sequence[torch.Generator] | None
# The least and the greatest value of every pixel, each broadcastable to the images.
Bounds = tuple[torch.Tensor, torch.Tensor]

STARTS = (True, False, "uniform", "normal")
NORMAL_START_SCALE = 0.001


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside the block; everything as it was after it.

    Every submodule's mode and every parameter's ``requires_grad`` is restored, also after an exception;
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


def ball(x: torch.Tensor, eps: float) -> Bounds:
    """The L-infinity ball of radius ``eps`` around the images ``x``, cut to pixels in [0,1]."""
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


def ascend(
    model: Callable[[torch.Tensor], Any],
    start: torch.Tensor,
    objective: Callable[[Any], torch.Tensor],
    bounds: Bounds,
    *,
    step_size: float,
    steps: int,
    eot: int = 1,
    active: Callable[[], torch.Tensor] | None = None,
    noise: Callable[[], torch.Tensor] | None = None,
) -> torch.Tensor:
    """``steps`` times: x_adv <- clip(x_adv + step_size * sign(gradient of objective(model(x_adv)))) to ``bounds``.

    The one loop of all attacks, protocol replicas and early-stopped trainings.

    Args:
        model: images (B, …) to anything that ``objective`` understands: logits, for most attacks.
        start: (B, …), the first iterate.
        objective: the model's output to one value per example (B,), which is maximized.
        eot: forward passes over which each gradient is summed.
        active: called once per step, after the gradient: which examples (B,) take the step. All, if not given.
        noise: called once per step: what is added to the step, before it is clipped.

    Raises:
        MoatError: a gradient that is not a number, in any step; says for how many examples.
    """
    lower, upper = bounds
    x_adv = start.detach().clone()
    bad = torch.zeros(len(x_adv), dtype=torch.bool, device=x_adv.device)
    for _ in range(steps):
        gradient = input_gradient(model, x_adv, objective, eot)
        # The sign of NaN is 0: unnoticed, a broken model would pass for a robust one.
        bad |= gradient.isnan().flatten(1).any(1)
        step = gradient.sign_().mul_(step_size)
        moving = None if active is None else active()
        if noise is not None:
            step += noise()
        moved = torch.clamp(x_adv + step, min=lower, max=upper)
        x_adv = moved if moving is None else torch.where(moving.view(-1, *[1] * (moved.ndim - 1)), moved, x_adv)
    # Checked once, at the end: each check makes a GPU wait.
    if bad.any():
        raise MoatError(f"the attack's gradient is not a number for {int(bad.sum())} of {len(bad)} examples")
    return x_adv


def input_gradient(
    model: Callable[[torch.Tensor], Any], x: torch.Tensor, objective: Callable[[Any], torch.Tensor], eot: int = 1
) -> torch.Tensor:
    """Gradient of the summed objective with respect to ``x`` alone, summed over ``eot`` forward passes.

    Zero for a model whose output does not depend differentiably on its input: it is not this function's
    business to hide that, and the gradient check reports it.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        # The sum, not the mean: in evaluation mode examples do not interact, and nothing underflows.
        value = sum(objective(model(x)).sum() for _ in range(eot))
        if not value.requires_grad:
            value = with_gradient(value, x)
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True, materialize_grads=True)
    return gradient


def random_start_point(
    x: torch.Tensor, eps: float, kind: bool | str, generator: Randomness, bounds: Bounds = (0, 1)
) -> torch.Tensor:
    """``x`` plus noise of a kind of ``STARTS``, within the eps-ball and ``bounds``; ``x`` itself for False."""
    if kind is False:
        return x
    if kind == "normal":
        noise = draw(x, torch.randn, generator).mul_(NORMAL_START_SCALE).clamp_(-eps, eps)
    else:
        noise = draw(x, torch.rand, generator).mul_(2).sub_(1).mul_(eps)
    return (x + noise).clamp_(*bounds)


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


def generators_of(generator: Randomness, indices: torch.Tensor) -> Randomness:
    """The generators of some examples, where there is one for each."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[index] for index in indices.tolist()]


def _draw_one(shape: torch.Size, dtype: torch.dtype, distribution, generator: torch.Generator) -> torch.Tensor:
    return distribution(shape, dtype=dtype, device=generator.device, generator=generator)
