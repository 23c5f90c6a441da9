"""BlockMoE: adversarial training of a ResNet with routed residual blocks, and a balancing loss (arXiv 2509.05086)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moat.base.errors import ConfigError
from moat.methods._routed import RoutedTraining
from moat.methods.base import Step, accuracy
from moat.models.moe import statistics
from moat.models.moe.blockmoe import Routing, noisy, within_capacity


class BlockMoeTraining(RoutedTraining):
    """Minimize CE(F(x'), y) + weight * a balancing loss at x', summed over layers; x' maximizes CE(F(x'), y) alone."""

    MIXTURE = "blockmoe"
    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD on the cross-entropy, through the gates"},
        "balancing": {
            "enum": ["ent", "switch", "kl"],
            "description": "the balancing loss: minus mutual information, of Switch, or KL to a uniform load; with the "
            "last two, noise decides between close blocks in training",
        },
        "loss.balance": {"type": "number", "minimum": 0, "description": "weight of the balancing loss"},
        "capacity": {
            "type": "number",
            "exclusiveMinimum": 0,
            "required": False,
            "description": "a block takes at most this times its even share of a batch; no limit where it is not given",
        },
        "polynomial": {
            "type": "number",
            "exclusiveMinimum": 0,
            "required": False,
            "description": "in place of schedule: the rate falls epoch by epoch, as (1 - epoch / epochs) to this power",
        },
    }

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        super().__init__(model, recipe, autocast=autocast)
        self.balancing, self.capacity = recipe["balancing"], recipe.get("capacity")
        if self.capacity is not None and (self.balancing == "ent" or model.top_k > 1):
            raise ConfigError("capacity: goes with top_k 1 and the balancing losses switch and kl only")

    def learning_rate(self, optimizer: str, step: Step) -> float:
        if "polynomial" not in self.recipe:
            return super().learning_rate(optimizer, step)
        return self.recipe["optimizer"]["lr"] * (1 - step.epoch / step.epochs) ** self.recipe["polynomial"]

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            attacked = self.attacked()
            x_adv = self.against(attacked, x, y, step, "attack")
            logits, routing = self.model.routed(x_adv, self.selection(step))
            with torch.no_grad():
                before, after = attacked.routed(x)[1], attacked.routed(x_adv)[1]
        balance = sum(BALANCING[self.balancing](p) for p in routing.probabilities)
        loss = F.cross_entropy(logits, y) + self.loss_weights["balance"] * balance
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "adversarial_train_accuracy": accuracy(logits, y),
            "balancing_loss": balance.detach(),
            **routing_metrics(before, after),
        }

    def selection(self, step: Step) -> Callable[[torch.Tensor, int], torch.Tensor] | None:
        """How blocks are selected in an update; None: those with the highest scores."""
        if self.balancing == "ent":
            return None
        draws = step.generator("gate noise")

        def select(scores: torch.Tensor, layer: int) -> torch.Tensor:
            p = scores.detach().softmax(1)
            noise = torch.randn(p.shape, dtype=p.dtype, device=p.device, generator=draws)
            moved = noisy(p, noise)
            return self.model.highest(moved) if self.capacity is None else within_capacity(moved, self.capacity)

        return select


def routing_metrics(clean: Routing, attacked: Routing) -> dict[str, torch.Tensor]:
    """For each layer: loads of its blocks and entropies of its gate, clean and attacked, and how many images change.

    Of images that take several blocks the best one counts.
    """
    found: dict[str, torch.Tensor] = {}
    pairs = zip(clean.scores, attacked.scores, strict=True)
    for number, (before, after) in enumerate(pairs):
        for kind, scores in (("clean", before), ("adversarial", after)):
            p = scores.softmax(1)
            loads = statistics.loads(kind, p.argmax(1), p.shape[1])
            loads[f"router_entropy_{kind}"] = torch.special.entr(p).sum(1).mean()
            found |= {f"layer{number}_{name}": value for name, value in loads.items()}
        found[f"layer{number}_rerouted"] = (before.argmax(1) != after.argmax(1)).float().mean()
    return found


def switch_loss(p: torch.Tensor) -> torch.Tensor:
    """E sum_e f_e pbar_e - 1 of a gate's probabilities (B, E), f_e the fraction of images whose greatest is that of e.

    0 wherever pbar is uniform, whatever the loads f are.
    """
    loads = F.one_hot(p.argmax(1), p.shape[1]).to(p.dtype).mean(0)
    return p.shape[1] * (loads * p.mean(0)).sum() - 1


def entropy_loss(p: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the probabilities (B, E) minus the entropy of their mean: minus mutual information, in nats."""
    return torch.special.entr(p).sum(1).mean() + kl_loss(p)


def kl_loss(p: torch.Tensor) -> torch.Tensor:
    """Minus the entropy of the mean of the probabilities (B, E): its KL to a uniform load, minus log E."""
    return -torch.special.entr(p.mean(0)).sum()


BALANCING: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ent": entropy_loss,
    "switch": switch_loss,
    "kl": kl_loss,
}

METHOD = BlockMoeTraining
