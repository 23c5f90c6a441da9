"""MoCSE: one full network per class, each trained to say whether an image is of its class (arXiv 2311.10177)."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from moat.base.errors import ConfigError, unknown_name
from moat.models.moe import views
from moat.models.moe.experts import Experts, build_experts

PARAMETERS = {
    "expert_width": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "width of an expert as a factor of the net's width",
    },
    "aggregation": {
        "enum": ["logodds", "true_logit", "probability"],
        "description": "which number of an expert is the class's logit",
    },
}


def log_odds(pairs: torch.Tensor) -> torch.Tensor:
    """z_True - z_False, whose argmax over experts is that of P(True)."""
    return pairs[..., 1] - pairs[..., 0]


AGGREGATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logodds": log_odds,
    "true_logit": lambda pairs: pairs[..., 1],
    "probability": lambda pairs: torch.sigmoid(log_odds(pairs)),
}


class ClassExperts(nn.Module):
    """Expert n says whether the image is of class n; what they say for "True" are the logits (B, K).

    There is no router: every expert sees every image (B, C, H, W) in [0,1].

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

    def attack_views(self) -> dict[str, nn.Module | views.View]:
        """The other aggregations, and each expert's own two-way loss."""
        others = {
            name: views.Computed(self, lambda model, x, aggregate=aggregate: aggregate(model.answers(x)).T)
            for name, aggregate in AGGREGATIONS.items()
            if name != self.aggregation
        }
        # Away from "True" for images of class n, away from "False" for all others.
        alone = {
            f"expert{n}": views.View(expert, labels=lambda y, n=n: (y == n).long())
            for n, expert in enumerate(self.experts)
        }
        return others | alone


def mocse(
    arch: str, num_classes: int, *, expert_width: float = 1.0, aggregation: str = "logodds", **net
) -> ClassExperts:
    """One net ``arch`` per class; ``expert_width`` 20/64 makes ten of them as large as one full net.

    Raises:
        ConfigError: an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigError(unknown_name(aggregation, AGGREGATIONS, what="aggregation"))
    net = {**net, "width": net["width"] * expert_width}
    return ClassExperts(build_experts(num_classes, arch, 2, net), aggregation)


MIXTURE = mocse
