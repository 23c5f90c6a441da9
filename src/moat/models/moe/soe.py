"""SoE: of several full networks, the most confident one decides (Cui et al., Synergy-of-Experts, NeurIPS 2022)."""

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe import views
from moat.models.moe.experts import build_experts
from moat.models.nets import Classifier
from moat.models.precision import at_least_float32

PARAMETERS = {"experts": {"type": "integer", "minimum": 1, "description": "how many full nets answer"}}


class ConfidentNet(nn.Module):
    """A classifier with a second head, whose output scales the largest class probability to a confidence."""

    def __init__(self, net: Classifier):
        super().__init__()
        self.net = net
        self.confidence_head = nn.Linear(net.head.in_features, 1)

    def answer(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, K), and the factor of the confidence (B,) in (0, 1), both float32 or wider."""
        features = self.net.features(x)
        logits, factor = self.net.head(features), self.confidence_head(features)[:, 0]
        return at_least_float32(logits), torch.sigmoid(at_least_float32(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def confidence(logits: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """R = factor * max_k softmax(z)_k (E, B), of logits (E, B, K) and the confidence heads' factors (E, B)."""
    return factor * F.softmax(logits, -1).amax(-1)


def most_confident(logits: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """For each image the logits (B, K) of its most confident expert; the choice has no gradient."""
    chosen = confidence(logits, factor).detach().argmax(0)
    return logits[chosen, torch.arange(logits.shape[1], device=logits.device)]


class SynergyOfExperts(nn.Module):
    """Every expert answers, the most confident one is selected: images (B, C, H, W) in [0,1] to logits (B, K)."""

    def __init__(self, experts: nn.ModuleList):
        super().__init__()
        self.experts = experts

    def answers(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (E, B, K) and the factors of the confidences (E, B) of all experts."""
        logits, factors = zip(*(expert.answer(x) for expert in self.experts), strict=True)
        return torch.stack(logits), torch.stack(factors)

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        """The confidences (B, E), in [0, 1]; the largest decides. They are no logits of a softmax."""
        return confidence(*self.answers(x)).T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return most_confident(*self.answers(x))

    def attack_views(self) -> dict[str, nn.Module]:
        soft = views.Computed(self, lambda model, x: weighted_by_confidence(*model.answers(x)))
        return {views.AVERAGE: views.average(self), views.SOFT: soft, **views.experts_alone(self)}


def weighted_by_confidence(logits: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """sum_i softmax(R)_i z_i (B, K): a choice that the gradient of the confidences R reaches."""
    weights = F.softmax(confidence(logits, factor), 0)
    return (weights[..., None] * logits).sum(0)


def soe(arch: str, num_classes: int, *, experts: int = 3, **net) -> SynergyOfExperts:
    """``experts`` nets ``arch``, each with a confidence head."""
    nets = build_experts(experts, arch, num_classes, net)
    return SynergyOfExperts(nn.ModuleList(ConfidentNet(each) for each in nets))


MIXTURE = soe
