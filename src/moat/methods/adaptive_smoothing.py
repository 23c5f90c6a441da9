"""Adaptive smoothing: only the mixing net between a standard and a robust net is trained (arXiv 2301.12554)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import ascend, frozen
from moat.methods._pretrained import PretrainedExperts
from moat.methods.base import AdversarialMethod, Step, accuracy
from moat.methods.schedules import learning_rate_factor
from moat.models.moe.adaptive_smoothing import mixed


class AdaptiveSmoothingTraining(AdversarialMethod, PretrainedExperts):
    """Minimize c_bce BCE(gamma, t) + c_ce CE(F, y) + c_product BCE CE over x (t = 0) and x' (t = 1).

    x' climbs (1 - w) CE(F, y) + w BCE(gamma, 1) through the whole mixture, mixing net included, with a weight w and a
    radius of its own for each image.
    """

    MIXTURE = "adaptive-smoothing"
    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD on the whole mixture, before its radius is varied"},
        "vary.smallest": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "an image's radius, and step, is drawn between so much of the attack's",
        },
        "vary.largest": {"type": "number", "exclusiveMinimum": 0, "description": "and so much of it"},
        "vary.mixing": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "greatest weight of the mixing net in what an image's attack climbs",
        },
        "loss.bce": {"type": "number", "minimum": 0, "description": "weight of the mixing net's own loss"},
        "loss.ce": {"type": "number", "minimum": 0, "description": "weight of the cross-entropy of the mixture"},
        "loss.product": {"type": "number", "minimum": 0, "description": "weight of their product"},
        "loss.clean": {"type": "number", "minimum": 0, "description": "how much more a clean image counts"},
        "adamw.lr": {"type": "number", "exclusiveMinimum": 0, "description": "greatest rate of AdamW, in place of SGD"},
        "adamw.weight_decay": {"type": "number", "minimum": 0, "description": "of AdamW"},
    }

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        model.experts.requires_grad_(False)
        super().__init__(model, recipe, autocast=autocast)
        self.optimizers["model"] = torch.optim.AdamW(self.parameters_of("model"), **recipe["adamw"])

    def train_mode(self) -> None:
        self.model.train()
        self.model.experts.eval()

    def learning_rate(self, optimizer: str, step: Step) -> float:
        return self.recipe["adamw"]["lr"] * learning_rate_factor(self.recipe["schedule"], step.progress)

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            images = torch.cat([x, self.attacked_images(x, y, step)])
            standard, robust, gamma = self.model.parts(images)
        alpha = self.model.alpha(gamma)
        logits, attacked = mixed(standard, robust, alpha), torch.arange(len(images), device=x.device) >= len(x)
        loss = smoothing_loss(logits, gamma, y.repeat(2), attacked, self.loss_weights)
        self.minimize(loss)
        clean, adversarial = alpha.detach().chunk(2)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits[: len(x)], y),
            "adversarial_train_accuracy": accuracy(logits[len(x) :], y),
            "alpha_clean": clean.mean(),
            "alpha_adversarial": adversarial.mean(),
        }

    def attacked_images(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> torch.Tensor:
        """Images (B, C, H, W) in the balls, each of a radius of its own."""
        vary, draws, model = self.recipe["vary"], step.generator("attack"), self.attacked()
        uniform = torch.rand(2, len(x), generator=draws, device=x.device, dtype=x.dtype)
        factor = (vary["smallest"] + (vary["largest"] - vary["smallest"]) * uniform[0]).view(-1, 1, 1, 1)
        weight, z = vary["mixing"] * uniform[1], self.space.encode(x)
        radius, step_size = factor * self.attack["eps"], factor * self.attack["step_size"]

        def through(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            standard, robust, gamma = model.parts(self.space.decode(z))
            return mixed(standard, robust, model.alpha(gamma)), gamma

        def objective(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            logits, gamma = outputs
            return (1 - weight) * cross_entropy(y)(logits) + weight * F.softplus(-gamma)

        with frozen(model):
            start = self.space.start(z, radius, self.attack.get("random_start", True), draws)
            bounds = self.space.bounds(z, radius)
            z_adv = ascend(through, start, objective, bounds, step_size=step_size, steps=self.attack["steps"])
        return self.space.decode(z_adv)


def smoothing_loss(
    logits: torch.Tensor, gamma: torch.Tensor, y: torch.Tensor, attacked: torch.Tensor, weights: Mapping[str, float]
) -> torch.Tensor:
    """The mean over images (B,) of c_bce BCE + c_ce CE + c_product BCE CE; clean ones count ``weights["clean"]`` times.

    Args:
        attacked: whether each image is attacked (B,), which gamma (B,) shall tell.
    """
    bce = F.binary_cross_entropy_with_logits(gamma, attacked.to(gamma.dtype), reduction="none")
    ce = F.cross_entropy(logits, y, reduction="none")
    each = weights["bce"] * bce + weights["ce"] * ce + weights["product"] * bce * ce
    return (torch.where(attacked, 1.0, weights["clean"]) * each).mean()


METHOD = AdaptiveSmoothingTraining
