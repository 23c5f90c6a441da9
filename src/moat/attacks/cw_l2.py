"""The L2 attack of Carlini and Wagner with a fixed constant. Source: arXiv 1608.04644, section V-A with f6.

Its result has no bound in any norm: a success says that some misclassified image is near, not that it is in a ball,
and its accuracy must not be compared with those under an epsilon.
"""

import torch

from moat.attacks.parts.arguments import attack
from moat.attacks.parts.objectives import margin
from moat.base.errors import MoatError
from moat.models.outputs import predicted_class

PARAMETERS = {
    "c": {"type": "number", "minimum": 0, "description": "weight of the margin against the squared distance"},
    "kappa": {"type": "number", "minimum": 0, "description": "the margin counts up to here"},
    "steps": {"type": "count", "description": "steps of Adam"},
    "lr": {"type": "number", "minimum": 0, "description": "learning rate of Adam"},
}

# The original's bound, which keeps black and white pixels movable.
INSIDE = 0.999999


@attack(PARAMETERS)
@torch.enable_grad()
def cw_l2(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    c: float = 1.0,
    kappa: float = 0.0,
    steps: int = 50,
    lr: float = 0.01,
) -> torch.Tensor:
    """Minimize |x' - x|^2 + c * max(z_y - max_{k != y} z_k, -kappa) over x' = (tanh(w) + 1) / 2 with Adam.

    Each example keeps the misclassified image that was nearest in L2 over all steps, or else is returned as it is.
    Examples do not influence each other, and nothing stops early.

    Raises:
        MoatError: a loss that is not a number.
    """
    x = x.detach()
    w = torch.atanh((2 * x - 1) * INSIDE).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    best, nearest = x.clone(), torch.full(x.shape[:1], torch.inf, dtype=x.dtype, device=x.device)
    margin_of = margin(y)
    bad = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        x_adv = (w.tanh() + 1) / 2
        logits = model(x_adv)
        distance = (x_adv - x).square().flatten(1).sum(1)
        loss = distance + c * (-margin_of(logits)).clamp(min=-kappa)
        bad |= loss.isnan()
        better = (predicted_class(logits) != y) & (distance < nearest)
        best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), x_adv.detach(), best)
        nearest = torch.where(better, distance.detach(), nearest)
        (w.grad,) = torch.autograd.grad(loss.sum(), w)
        optimizer.step()
    if bad.any():
        raise MoatError(f"the attack's loss is not a number for {int(bad.sum())} of {len(bad)} examples")
    return torch.empty_like(x).copy_(best)
