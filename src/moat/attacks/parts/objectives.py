"""What an attack maximizes: functions from logits (B, K) to one value per example (B,), in float32 or wider."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from moat.models.precision import at_least_float32

Objective = Callable[[torch.Tensor], torch.Tensor]


def cross_entropy(y: torch.Tensor) -> Objective:
    """-log p_y."""
    return lambda logits: F.cross_entropy(at_least_float32(logits), y, reduction="none")


def margin(y: torch.Tensor, bound: float | None = None) -> Objective:
    """max_{k != y} z_k - z_y, at most ``bound``: above 0 exactly where the example is misclassified.

    Source: Carlini and Wagner, arXiv 1608.04644, f6.
    """

    def value(logits: torch.Tensor) -> torch.Tensor:
        logits = at_least_float32(logits)
        labelled = F.one_hot(y, logits.shape[1]).bool()
        found = logits.masked_fill(labelled, -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]
        return found if bound is None else found.clamp(max=bound)

    return value


def target_margin(target: torch.Tensor, y: torch.Tensor) -> Objective:
    """z_t - z_y for a target class t (B,) of each example."""

    def value(logits: torch.Tensor) -> torch.Tensor:
        logits = at_least_float32(logits)
        return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]

    return value


def divergence(clean_logits: torch.Tensor) -> Objective:
    """KL(p || q) of the given logits' softmax p and the argument's q. Source: TRADES, arXiv 1901.08573, eq. 3."""
    log_p = F.log_softmax(at_least_float32(clean_logits), 1)
    return lambda logits: (log_p.exp() * (log_p - F.log_softmax(at_least_float32(logits), 1))).sum(1)


def _divergence_from_clean(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Objective:
    with torch.no_grad():
        return divergence(model(x))


OBJECTIVES: dict[str, Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], Objective]] = {
    "ce": lambda model, x, y: cross_entropy(y),
    "margin": lambda model, x, y: margin(y),
    "kl": _divergence_from_clean,
}


def make_objective(name: str, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Objective:
    """The objective ``name`` (a key of ``OBJECTIVES``) for clean images ``x`` (B, …) with labels ``y`` (B,)."""
    return OBJECTIVES[name](model, x, y)
