"""The fixed mixture of an accurate net and a robust one: their class probabilities, with constant weights.

Source: the constant version of Bai, Anderson, Kim and Sojoudi, Improving the Accuracy-Robustness Trade-Off of
Classifiers via Adaptive Smoothing, arXiv 2301.12554, as its released code computes it.
"""

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe import views
from moat.models.moe.experts import Experts, build_experts
from moat.models.precision import at_least_float32

PARAMETERS = {}


def log_mixture(log_p: torch.Tensor, log_q: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """log((1 - alpha) p + alpha q) (B, K) of log-probabilities (B, K); either may be -inf where the other is finite.

    Args:
        alpha: weight of q in [0, 1], a scalar or (B, 1).
    """
    return torch.logaddexp(torch.log1p(-alpha) + log_p, torch.log(alpha) + log_q)


class MixedNets(nn.Module):
    """log((1 - alpha) softmax(g(x)) + alpha softmax(h(x))): images (B, C, H, W) in [0, 1] to log-probabilities (B, K).

    Args:
        experts: the accurate net g and the robust net h, in this order.

    ``alpha`` is fitted, not learned: its gradient is never asked for.
    """

    def __init__(self, experts: Experts):
        super().__init__()
        self.experts = experts
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def answers(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits (B, K) of g and of h."""
        standard, robust = at_least_float32(self.experts(x)).unbind(0)
        return standard, robust

    def combine(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        """The mixture's log-probabilities, of the logits of g and of h."""
        return log_mixture(F.log_softmax(standard, 1), F.log_softmax(robust, 1), self.alpha.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.combine(*self.answers(x))

    def attack_views(self) -> dict[str, nn.Module]:
        return {views.AVERAGE: views.average(self), **views.experts_alone(self)}


def mixed_fixed(arch: str, num_classes: int, **net) -> MixedNets:
    """Two nets ``arch``."""
    return MixedNets(build_experts(2, arch, num_classes, net))


MIXTURE = mixed_fixed
