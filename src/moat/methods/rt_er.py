"""RT-ER: adversarial training of a routed mixture and of each image's second expert (arXiv 2502.06832)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moat.methods import losses
from moat.methods._routed import RoutedTraining
from moat.methods.base import Step, accuracy
from moat.models.moe import statistics
from moat.models.moe.views import Computed


class CyclicAdam(RoutedTraining):
    """A method whose recipe may have the released code's optimizer: Adam, at a rate that rises and falls in cycles."""

    PARAMETERS = {
        "adam": {
            "type": "object",
            "required": False,
            "properties": {
                "low": {"type": "number", "exclusiveMinimum": 0},
                "high": {"type": "number", "exclusiveMinimum": 0},
                "half_cycle": {"type": "integer", "minimum": 1},
            },
            "description": "Adam in place of optimizer and schedule: its rate rises from low to high in half_cycle "
            "batches, falls again, and so on",
        },
    }

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        super().__init__(model, recipe, autocast=autocast)
        self.cycle = recipe.get("adam")
        if self.cycle:
            for name in self.optimizers:
                self.optimizers[name] = torch.optim.Adam(self.parameters_of(name), lr=self.cycle["low"])

    def learning_rate(self, optimizer: str, step: Step) -> float:
        if not self.cycle:
            return super().learning_rate(optimizer, step)
        return triangular(step.epoch * step.batches + step.batch, **self.cycle)


class RtEr(CyclicAdam):
    """Minimize CE(F(x'), y) + beta * KL(p_j(x) || p_j(x'_j)), j the expert that the router would take second for x.

    x' maximizes the cross-entropy of the whole mixture, whose route follows every step; x'_j that of expert j alone.
    The gradient flows through both arguments of the divergence. Every pass of the update is in train mode.
    """

    MIXTURE = "rt-er"
    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD on the mixture, and on each image's second expert"},
        "loss.beta": {"type": "number", "minimum": 0, "description": "weight of the second expert's divergence"},
    }

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        scores = self.model.route_logits(x)
        second = second_of(scores)
        with self.autocast():
            x_adv = self.against(self.attacked(), x, y, step, "attack")
            x_second = self.against(by_route(self.attacked(), second), x, y, step, "attack on the second expert")
        logits = self.logits(x_adv)
        with self.autocast():
            clean, moved = self.model.by_route(x, second), self.model.by_route(x_second, second)
        divergence = losses.kl(clean, moved)
        loss = F.cross_entropy(logits, y) + self.loss_weights["beta"] * divergence
        self.minimize(loss)
        with torch.no_grad():
            scores_adv = self.model.route_logits(x_adv)
        return {
            "loss": loss.detach(),
            "adversarial_train_accuracy": accuracy(logits, y),
            "second_expert_divergence": divergence.detach(),
            **routing_of(scores.detach(), scores_adv),
        }


def second_of(scores: torch.Tensor) -> torch.Tensor:
    """The expert with the second highest of the scores (B, E), for each image."""
    return scores.topk(2, 1).indices[:, 1]


def by_route(model: nn.Module, route: torch.Tensor) -> nn.Module:
    """Every image through the expert that ``route`` (B,) gives it, whatever the router says."""
    return Computed(model, lambda model, x: model.by_route(x, route))


def routing_of(scores: torch.Tensor, scores_adv: torch.Tensor) -> dict[str, torch.Tensor]:
    """Load of each expert, clean and attacked, and the fraction of images that the attack reroutes."""
    clean, attacked = scores.argmax(1), scores_adv.argmax(1)
    return {
        **statistics.loads("clean", clean, scores.shape[1]),
        **statistics.loads("adversarial", attacked, scores.shape[1]),
        "rerouted": (clean != attacked).float().mean(),
    }


def triangular(batch: int, *, low: float, high: float, half_cycle: int) -> float:
    """The rate at a batch of the training: from low up to high in half_cycle batches, down in as many, and again."""
    position = batch % (2 * half_cycle)
    return low + (high - low) * min(position, 2 * half_cycle - position) / half_cycle


METHOD = RtEr
