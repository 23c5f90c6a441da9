"""Logits that make an attack keep a side condition while it maximizes its loss: on a route, or on a margin."""

import torch
from torch.nn import functional as F

from moat.models.precision import at_least_float32

# Far above all log-probabilities, so that its class takes the whole softmax.
_AHEAD = 1e4
# How much a shortfall counts against the cross-entropy.
WEIGHT = 10.0


def constrained(logits: torch.Tensor, shortfall: torch.Tensor, weight: float = WEIGHT) -> torch.Tensor:
    """Logits (B, K + 1) for a view of a mixture: those given, and a further class that stands for a condition.

    Their cross-entropy with a label below K, and their margin, have the gradient of CE(logits, y) - weight * shortfall.
    So an attack that maximizes either also makes the shortfall small.

    Args:
        logits: (B, K).
        shortfall: (B,), from 0, by how much the condition is missed.
    """
    log_p = F.log_softmax(at_least_float32(logits), 1)
    further = (_AHEAD - weight * shortfall.to(log_p.dtype)).clamp(min=_AHEAD / 2)
    return torch.cat([log_p, further[:, None]], 1)


def shortfall_of_lead(scores: torch.Tensor, expert: int, lead: float = 1e-3) -> torch.Tensor:
    """By how much an expert's score (of (B, E)) misses the greatest of the others plus ``lead``: (B,), from 0."""
    others = torch.cat([scores[:, :expert], scores[:, expert + 1 :]], 1)
    return (others.amax(1) + lead - scores[:, expert]).clamp(min=0)
