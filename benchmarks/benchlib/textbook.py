"""Textbook PGD and TRADES: ours must compute the same, faster.

Written from the formulas, without any of the project's optimisations or attack code.
"""

import torch
from torch import nn
from torch.nn import functional as F


def pgd(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, *, eps: float, step_size: float, steps: int
) -> torch.Tensor:
    """Signed steps that maximize the cross-entropy, projected to the ball around ``x`` (B, C, H, W) and [0,1]."""
    model.eval()
    x_adv = start.clone()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv.detach()


def trades_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    start: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    beta: float,
) -> None:
    """One TRADES update as in the official code, which recomputes the clean logits in every attack step.

    That code also runs the clean images twice in the update, which updates batch norm's statistics a second time; here
    they run once, so that the states can be compared.
    """
    divergence = nn.KLDivLoss(reduction="sum")
    model.eval()
    x_adv = start.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = divergence(F.log_softmax(model(x_adv), 1), F.softmax(model(x), 1))
        (gradient,) = torch.autograd.grad(loss, [x_adv])
        x_adv = x_adv.detach() + step_size * torch.sign(gradient.detach())
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    model.train()
    optimizer.zero_grad()
    logits, logits_adv = model(x), model(x_adv)
    robust = divergence(F.log_softmax(logits_adv, 1), F.softmax(logits, 1)) / len(x)
    (F.cross_entropy(logits, y) + beta * robust).backward()
    optimizer.step()
