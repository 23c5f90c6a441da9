"""A mixture of full networks whose logits are weighted by a router."""

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe import views
from moat.models.moe.experts import Experts
from moat.models.precision import at_least_float32


class WeightedMixture(nn.Module):
    """F(x) = sum_i w_i(x) z_i(x): expert logits z_i, weights w = softmax(G(x)) of a router G.

    Images (B, C, H, W) in [0,1] to logits (B, K). Every expert is always run.
    """

    def __init__(self, experts: Experts, router: nn.Module):
        super().__init__()
        self.experts = experts
        self.router = router

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        """The router's scores G(x) (B, E)."""
        return self.router(x)

    def mix(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K) and the weights (B, E), rows of which sum to 1."""
        weights = F.softmax(at_least_float32(self.route_logits(x)), 1)
        # A sum of products: as a matrix product it would be rounded to half precision under autocast.
        return (weights.T[..., None] * self.experts(x)).sum(0), weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x)[0]

    def attack_views(self) -> dict[str, nn.Module]:
        return {views.AVERAGE: views.average(self), **views.experts_alone(self)}
