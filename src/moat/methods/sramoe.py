"""SRAMoE: a router between a clean and an adversarially trained net, both frozen (DRAMoE, Section 3)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moat.attacks import pgd
from moat.methods._pretrained import PretrainedExperts
from moat.methods.base import AdversarialMethod, Step, accuracy
from moat.models.moe import statistics
from moat.models.precision import at_least_float32


class Sramoe(AdversarialMethod, PretrainedExperts):
    """Minimize CE(F(x), y) + CE(F(x'), y) over the router of F = w_c E_clean + w_a E_adv, x' attacks the whole F."""

    MIXTURE = "sramoe"
    PARAMETERS = {"attack": {"type": "attack", "description": "PGD on the whole mixture, router included"}}

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        model.experts.requires_grad_(False)
        super().__init__(model, recipe, autocast=autocast)

    def train_mode(self) -> None:
        self.model.train()
        self.model.experts.eval()

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            x_adv = pgd(
                self.attacked(), x, y, loss="ce", generator=step.generator("attack"), space=self.space, **self.attack
            )
            (clean, clean_weights), (adversarial, adversarial_weights) = self.model.mix(x), self.model.mix(x_adv)
        clean, adversarial = at_least_float32(clean), at_least_float32(adversarial)
        loss = F.cross_entropy(clean, y) + F.cross_entropy(adversarial, y)
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(clean, y),
            "adversarial_train_accuracy": accuracy(adversarial, y),
            **statistics.weights("clean", clean_weights),
            **statistics.weights("adversarial", adversarial_weights),
        }


METHOD = Sramoe
