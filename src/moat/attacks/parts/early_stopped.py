"""Early-stopped PGD, which friendly adversarial training is made of; not a registered attack, for it stops early.

Source: Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, ICML 2020, algorithm 1.
"""

from collections.abc import Callable

import torch

from moat.attacks.parts.checks import check_batch, check_budget, check_iterations
from moat.attacks.parts.steps import Randomness, draw, frozen, random_start_point
from moat.base.errors import ConfigError, MoatError

AscendLoss = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def early_stopped_pgd(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    tau: int,
    ascend_loss: AscendLoss,
    random_start: bool | str = "uniform",
    noise: float = 0.0,
    generator: Randomness = None,
) -> torch.Tensor:
    """PGD in the ball around ``x`` (B, C, H, W) that leaves each example ``tau`` steps after it is misclassified.

    Each example has a counter that starts at ``tau``. Before each of the ``steps``: a misclassified example whose
    counter is 0 stays for good as it is; a misclassified one with a higher counter loses 1 and goes on.
    ``tau = steps`` is ordinary PGD. All examples pass through the model at each step, in their order; a stopped
    one is just not moved, so no step waits for the host.

    Args: (eps, step_size and noise in pixel units)
        ascend_loss: called with x_adv (B, C, H, W), gives the loss to climb per example (B,) and the logits (B, K).
            It runs with the model in evaluation mode and its parameters frozen.
        random_start: "uniform" (or True), "normal" or False, as in :func:`moat.attacks.pgd`.
        noise: scale of the Gaussian noise added to each step.

    Raises:
        ConfigError: a parameter out of range.
        ValueError: images outside [0,1] or labels that do not fit.
        MoatError: a gradient that is not a number.
    """
    check_budget(eps=eps, step_size=step_size, noise=noise)
    check_iterations(steps=steps)
    if not isinstance(tau, int) or isinstance(tau, bool) or tau < 0:
        raise ConfigError(f"tau: {tau!r} is not allowed; a whole number from 0")
    check_batch(x, y, generator)
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    with frozen(model):
        x_adv = random_start_point(x, eps, random_start, generator).detach().clone()
        left = torch.full_like(y, tau)
        active = torch.ones_like(y, dtype=torch.bool)
        bad = torch.zeros_like(active)
        for _ in range(steps):
            gradient, wrong = _gradient(ascend_loss, x_adv, y)
            active &= ~(wrong & (left == 0))
            left -= (active & wrong).to(left.dtype)
            # The sign of NaN is 0: unnoticed, a broken model would pass for a robust one.
            bad |= gradient.isnan().flatten(1).any(1)
            move = gradient.sign_().mul_(step_size)
            if noise:
                move += noise * draw(x, torch.randn, generator)
            stepped = torch.clamp(x_adv + move, min=lower, max=upper)
            x_adv = torch.where(active.view(-1, *[1] * (x.ndim - 1)), stepped, x_adv)
    if bad.any():
        raise MoatError(f"the attack's gradient is not a number for {int(bad.sum())} of {len(bad)} examples")
    return x_adv


def _gradient(ascend_loss: AscendLoss, x_adv: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the summed loss at ``x_adv``, and which examples are misclassified there (B,)."""
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        loss, logits = ascend_loss(x_adv)
        (gradient,) = torch.autograd.grad(loss.sum(), x_adv, allow_unused=True, materialize_grads=True)
    return gradient, logits.detach().argmax(1) != y
