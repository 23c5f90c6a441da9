"""Mixtures of full networks: weighted by a router (DWF, SRAMoE), chosen by confidence (SoE), or one per class (MoCSE).

Each maps images (B, C, H, W) in [0,1] to logits (B, K).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError, unknown_name
from moat.models.moe.experts import Experts, build_experts
from moat.models.moe.mlp_router import MlpRouter
from moat.models.moe.routers import build_router
from moat.models.moe.views import ComputedView, View
from moat.models.nets import Classifier, Normalization


class WeightedMixture(nn.Module):
    """F(x) = sum_i w_i(x) z_i(x): expert logits z_i, weights w = softmax(G(x)) of a router G.

    Every expert is always run. Sources: DWF (arXiv 2512.20821), soft gate over nine experts; DRAMoE, the static
    mixture SRAMoE of a clean and an adversarially trained expert.
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
        weights = F.softmax(self.route_logits(x).float(), 1)
        # A sum of products: as a matrix product it would be rounded to half precision under autocast.
        return (weights.T[..., None] * self.experts(x)).sum(0), weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x)[0]

    def attack_views(self) -> dict[str, nn.Module]:
        """See :mod:`moat.models.moe.views`."""
        return {"average": ComputedView(self, _average), **_each_alone(self)}


class ConfidentNet(nn.Module):
    """A classifier with a second head: the logit of how far its own confidence is to be trusted."""

    def __init__(self, net: Classifier):
        super().__init__()
        self.net = net
        self.trust = nn.Linear(net.head.in_features, 1)

    def judge(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, K) and trust in (0, 1) (B,), both float32 or wider."""
        features = self.net.features(x)
        logits, trust = self.net.head(features), self.trust(features)[:, 0]
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide), torch.sigmoid(trust.to(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def confidence(logits: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """R = trust * max_k softmax(z)_k (E, B), of logits (E, B, K) and trust (E, B)."""
    return trust * F.softmax(logits, -1).amax(-1)


def most_confident(logits: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """For each image the logits (B, K) of its most confident expert; the choice has no gradient."""
    chosen = confidence(logits, trust).detach().argmax(0)
    return logits[chosen, torch.arange(logits.shape[1], device=logits.device)]


class SynergyOfExperts(nn.Module):
    """SoE: every expert answers, the most confident one is heard. Source: Cui et al., Synergy-of-Experts, 2022."""

    def __init__(self, experts: nn.ModuleList):
        super().__init__()
        self.experts = experts

    def judge(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (E, B, K) and trust (E, B) of all experts."""
        logits, trust = zip(*(expert.judge(x) for expert in self.experts), strict=True)
        return torch.stack(logits), torch.stack(trust)

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        """The confidences (B, E), in [0, 1]; the largest decides. They are no logits of a softmax."""
        return confidence(*self.judge(x)).T

    def soft(self, x: torch.Tensor) -> torch.Tensor:
        """sum_i softmax(R)_i z_i: the confidences R, which the model's own choice hides, in the gradient."""
        logits, trust = self.judge(x)
        weights = F.softmax(confidence(logits, trust), 0)
        return (weights[..., None] * logits).sum(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return most_confident(*self.judge(x))

    def attack_views(self) -> dict[str, nn.Module]:
        """See :mod:`moat.models.moe.views`."""
        views = {"average": ComputedView(self, _average), "soft": ComputedView(self, SynergyOfExperts.soft)}
        return views | _each_alone(self)


def log_odds(pairs: torch.Tensor) -> torch.Tensor:
    """z_True - z_False, whose argmax over experts is that of P(True)."""
    return pairs[..., 1] - pairs[..., 0]


AGGREGATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logodds": log_odds,
    "true_logit": lambda pairs: pairs[..., 1],
    "probability": lambda pairs: torch.sigmoid(log_odds(pairs)),
}


class ClassExperts(nn.Module):
    """MoCSE: expert n says whether the image is of class n; what they say for "True" are the logits.

    Source: MoCSE (arXiv 2311.10177). There is no router: every expert sees every image.

    Args:
        experts: one net per class with two outputs, (False, True).
        aggregation: which number of an expert becomes the class's logit, a key of :data:`AGGREGATIONS`.
    """

    def __init__(self, experts: Experts, aggregation: str):
        super().__init__()
        self.experts = experts
        self.aggregation = aggregation

    def answers(self, x: torch.Tensor) -> torch.Tensor:
        """The experts' logits (E, B, 2) for (False, True)."""
        return self.experts(x)

    def aggregate(self, answers: torch.Tensor) -> torch.Tensor:
        """Class logits (B, E) of the experts' answers (E, B, 2)."""
        return AGGREGATIONS[self.aggregation](answers).T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.aggregate(self.answers(x))

    def attack_views(self) -> dict[str, View | nn.Module]:
        """See :mod:`moat.models.moe.views`; each expert alone is attacked on its own question."""
        others = {
            name: ComputedView(self, lambda model, x, aggregate=aggregate: aggregate(model.answers(x)).T)
            for name, aggregate in AGGREGATIONS.items()
            if name != self.aggregation
        }
        # Away from "True" for images of class n, away from "False" for all others.
        experts = {
            f"expert{n}": View(expert, labels=lambda y, n=n: (y == n).long()) for n, expert in enumerate(self.experts)
        }
        return others | experts


def _average(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mean of the experts' logits: every expert pulls, whatever its weight here."""
    return torch.stack([expert(x) for expert in model.experts]).mean(0)


def _each_alone(model: nn.Module) -> dict[str, nn.Module]:
    return {f"expert{e}": expert for e, expert in enumerate(model.experts)}


def _dwf(arch: str, num_classes: int, net: Mapping[str, Any], experts: int = 9, gate_hidden: int = 256) -> nn.Module:
    nets = build_experts(experts, arch, num_classes, net)
    return WeightedMixture(nets, MlpRouter(experts, hidden=gate_hidden, **net))


def _sramoe(arch: str, num_classes: int, net: Mapping[str, Any], experts: int = 2) -> nn.Module:
    nets = build_experts(experts, arch, num_classes, net)
    return WeightedMixture(nets, build_router("gap", experts, in_channels=net["in_channels"], width=net["width"]))


def _soe(arch: str, num_classes: int, net: Mapping[str, Any], experts: int = 3) -> nn.Module:
    nets = build_experts(experts, arch, num_classes, net)
    return SynergyOfExperts(nn.ModuleList(ConfidentNet(each) for each in nets))


def _mocse(
    arch: str, num_classes: int, net: Mapping[str, Any], expert_width: float = 1.0, aggregation: str = "logodds"
) -> nn.Module:
    if aggregation not in AGGREGATIONS:
        raise ConfigError(unknown_name(aggregation, AGGREGATIONS, what="aggregation"))
    net = {**net, "width": net["width"] * expert_width}
    return ClassExperts(build_experts(num_classes, arch, 2, net), aggregation)


KINDS: Mapping[str, Callable[..., nn.Module]] = {"dwf": _dwf, "sramoe": _sramoe, "soe": _soe, "mocse": _mocse}


def build_mixture(
    kind: str,
    arch: str,
    num_classes: int,
    *,
    width: float = 1.0,
    image_size: int = 32,
    in_channels: int = 3,
    normalize: Normalization = "cifar10",
    **options: Any,
) -> nn.Module:
    """A freshly initialised mixture of nets ``arch``; the keywords are those of :func:`moat.models.build` and these.

    Args:
        kind: "dwf" (options ``experts``, 9; ``gate_hidden``, units of the gate at width 1, 256), "sramoe"
            (``experts``, 2), "soe" (``experts``, 3), or "mocse" (``aggregation``, see :data:`AGGREGATIONS`;
            ``expert_width``, a factor on ``width``: 20/64 makes ten experts as large as one full net).

    Raises:
        ConfigError: unknown kind, option, net, aggregation or normalisation, or a number out of range.
    """
    if kind not in KINDS:
        raise ConfigError(unknown_name(kind, KINDS, what="mixture"))
    allowed = [name for name in inspect.signature(KINDS[kind]).parameters if name not in ("arch", "num_classes", "net")]
    for name in options:
        if name not in allowed:
            raise ConfigError(unknown_name(name, allowed, what=f"option of {kind}"))
    net = {"width": width, "image_size": image_size, "in_channels": in_channels, "normalize": normalize}
    return KINDS[kind](arch, num_classes, net, **options)
