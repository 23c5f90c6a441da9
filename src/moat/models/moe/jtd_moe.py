"""The dual model of JTDMoE: a standard and a robust mixture of routed nets, whose logits are added.

Source: Zhang, Xu, Hu and Wang, Optimizing Robustness and Accuracy in Mixture of Experts: A Dual-Model Approach, ICML
2025, arXiv 2502.06832, as its released code computes it.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError, unknown_name
from moat.models.moe import views
from moat.models.moe.constrained import constrained, shortfall_of_lead
from moat.models.moe.mixed_fixed import log_mixture
from moat.models.moe.rt_er import RoutedNets, routes_of, rt_er

PARAMETERS = {
    "experts": {"type": "integer", "minimum": 2, "description": "full nets of each of the two mixtures"},
    "alpha": {"type": "number", "minimum": 0, "maximum": 1, "description": "weight of the robust mixture"},
    "combine": {
        "enum": ["logits", "probabilities"],
        "description": "what is added: logits, as in the released code, or class probabilities",
    },
}
COMBINE = ("logits", "probabilities")


class DualMoe(nn.Module):
    """(1 - alpha) F_S(x) + alpha F_R(x): images (B, C, H, W) in [0, 1] to logits (B, K).

    Args:
        standard, robust: the mixtures F_S and F_R, each with a router of its own.
        probabilities: whether class probabilities are added, and the logarithm of the sum is returned.
    """

    def __init__(self, standard: RoutedNets, robust: RoutedNets, *, alpha: float, probabilities: bool):
        super().__init__()
        self.standard, self.robust = standard, robust
        self.alpha, self.probabilities = alpha, probabilities

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.combine(self.standard(x), self.robust(x))

    def combine(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        """The mixture's logits, of those of F_S and F_R."""
        if not self.probabilities:
            return (1 - self.alpha) * standard + self.alpha * robust
        alpha = torch.tensor(self.alpha, dtype=robust.dtype, device=robust.device)
        return log_mixture(F.log_softmax(standard, 1), F.log_softmax(robust, 1), alpha)

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the pairs of experts (B, E^2): sums of log-probabilities; pair (s, r) has the number s E + r."""
        standard, robust = (F.log_softmax(part.route_logits(x), 1) for part in (self.standard, self.robust))
        return (standard[:, :, None] + robust[:, None, :]).flatten(1)

    def mix(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K), and each expert's part of the image's two choices (B, 2E), those of F_S first."""
        chosen = [
            F.one_hot(routes_of(part.route_logits(x)), len(part.experts)) for part in (self.standard, self.robust)
        ]
        logits = self(x)
        return logits, torch.cat(chosen, 1).to(logits.dtype) / 2

    def on_routes(self, x: torch.Tensor, standard: int, robust: int) -> torch.Tensor:
        """The logits of a pair of experts, on the condition that both routers select it."""
        logits = self.combine(self.standard.experts[standard](x), self.robust.experts[robust](x))
        missed = [
            shortfall_of_lead(part.route_logits(x), expert)
            for part, expert in ((self.standard, standard), (self.robust, robust))
        ]
        return constrained(logits, sum(missed))

    def attack_views(self) -> dict[str, nn.Module]:
        """Each mixture alone; soft routers; every pair of experts on the condition that it is selected."""
        found: dict[str, nn.Module] = {"standard": self.standard, "robust": self.robust}
        found[views.SOFT] = views.Computed(
            self, lambda model, x: model.combine(model.standard.softly(x), model.robust.softly(x))
        )
        pairs = itertools.product(range(len(self.standard.experts)), range(len(self.robust.experts)))
        for s, r in pairs:
            found[f"joint{s}-{r}"] = views.Computed(self, lambda model, x, s=s, r=r: model.on_routes(x, s, r))
        return found


def jtd_moe(
    arch: str, num_classes: int, *, experts: int = 4, alpha: float = 0.7, combine: str = "logits", **net
) -> DualMoe:
    """Two mixtures of ``experts`` nets ``arch`` each, with fixed random routers.

    Raises:
        ConfigError: an unknown way to combine them.
    """
    if combine not in COMBINE:
        raise ConfigError(f"combine: {unknown_name(combine, COMBINE, what='way to combine')}")
    standard, robust = (rt_er(arch, num_classes, experts=experts, **net) for _ in range(2))
    return DualMoe(standard, robust, alpha=alpha, probabilities=combine == "probabilities")


MIXTURE = jtd_moe
