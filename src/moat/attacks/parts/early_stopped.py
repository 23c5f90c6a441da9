"""Early-stopped PGD, which friendly adversarial training is made of; not an attack to measure with, for it stops early.

Source: Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, ICML 2020, algorithm 1.
"""

from collections.abc import Callable

import torch

from moat.attacks.parts.arguments import check_batch, check_budget, check_iterations
from moat.attacks.parts.spaces import PIXELS, Space
from moat.attacks.parts.steps import Randomness, ascend, draw, frozen
from moat.base.errors import ConfigError
from moat.models.outputs import predicted_class

# Images (B, C, H, W) to the loss that is maximized, per example (B,), and the logits (B, K).
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
    space: Space = PIXELS,
) -> torch.Tensor:
    """PGD in the ball around ``x`` (B, C, H, W) that stops moving each example ``tau`` steps after it is misclassified.

    Each example has a counter that starts at ``tau``. Before each of the ``steps``: a misclassified example whose
    counter is 0 stays as it is for good; a misclassified one with a higher counter loses 1 and goes on.
    ``tau = steps`` is ordinary PGD. All examples pass through the model at each step, in their order; a stopped
    one is just not moved, so that no step waits for the host.

    Args: (eps, step_size and noise in units of the space: pixels in [0,1])
        ascend_loss: images to the loss that is maximized and the logits; it is called with the model in evaluation
            mode and its parameters frozen.
        random_start: "uniform" (or True), "normal" or False, as in :func:`moat.attacks.pgd`.
        noise: scale of the Gaussian noise added to each step.
        space: where the attack works; what is returned is in pixel units.

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
    z = space.encode(x)
    bounds = space.bounds(z, eps)
    patience = _Patience(y, tau)
    with frozen(model):
        start = space.start(z, eps, random_start, generator)
        noises = (lambda: noise * draw(z, torch.randn, generator)) if noise else None
        z_adv = ascend(
            space.view(ascend_loss), start, patience.objective, bounds,
            step_size=step_size, steps=steps, active=patience.spend, noise=noises,
        )  # fmt: skip
    # An example that never moved has not been cut yet.
    return space.decode(z_adv.clamp(*bounds))


class _Patience:
    """How many steps each example may still go on once it is misclassified."""

    def __init__(self, y: torch.Tensor, tau: int):
        self.y = y
        self.left = torch.full_like(y, tau)
        self.active = torch.ones_like(y, dtype=torch.bool)

    def objective(self, found: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss, logits = found
        self.misclassified = predicted_class(logits) != self.y
        return loss

    def spend(self) -> torch.Tensor:
        """The examples (B,) that take the next step."""
        self.active &= ~(self.misclassified & (self.left == 0))
        self.left -= (self.active & self.misclassified).to(self.left.dtype)
        return self.active
