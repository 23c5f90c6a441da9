"""Hybrid: augmentation with ever stronger adversarial examples, and a loss that follows validation accuracy."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from moat.attacks import pgd, resolve
from moat.attacks.parts.setting import Attack
from moat.methods.base import AdversarialMethod, Step, accuracy


class Hybrid(AdversarialMethod):
    """Minimize alpha * CE(F(x), y) + (1 - alpha) * CE(F(x'), y), with x' from a ball that grows with the epochs.

    After each epoch, alpha = Acc_adv / (Acc_adv + Acc_clean) on the held-out images: the worse the net does
    under attack, the more the attacked images count.
    """

    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD at the full radius; one step is FGSM"},
        "alpha_attack": {"type": "attack", "description": "PGD on the held-out images, whose accuracy decides alpha"},
        "loss.alpha": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "weight of the clean images in the first epoch",
        },
        "epsilon_schedule.start": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "fraction of the attack's eps (and step size) in the first epoch",
        },
        "epsilon_schedule.full_at": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "fraction of the training at which the linear growth reaches the whole eps",
        },
    }

    def __init__(self, model: torch.nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        super().__init__(model, recipe, autocast=autocast)
        self.alpha = float(self.loss_weights["alpha"])
        self.growth = recipe["epsilon_schedule"]
        self.clean_images = resolve("clean", {"attack": "none"})
        self.full_attack = resolve("alpha_attack", {"attack": "pgd", **recipe["alpha_attack"]})

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            attack = self.attack_at(step.epoch, step.epochs)
            x_adv = pgd(self.attacked(), x, y, generator=step.generator("attack"), space=self.space, **attack)
        logits_clean, logits_adv = self.logits(x), self.logits(x_adv)
        loss = hybrid_loss(logits_clean, logits_adv, y, self.alpha)
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits_clean, y),
            "adversarial_train_accuracy": accuracy(logits_adv, y),
        }

    def attack_at(self, epoch: int, epochs: int) -> dict[str, Any]:
        """The recipe's attack in an epoch: eps and step size shrunk alike."""
        fraction = epsilon_fraction(epoch / epochs, **self.growth)
        return {**self.attack, "eps": fraction * self.attack["eps"], "step_size": fraction * self.attack["step_size"]}

    def end_epoch(self, epoch: int, accuracy: Callable[[Attack], float]) -> dict[str, float]:
        """Take the next epoch's alpha from the validation accuracies; record what this epoch was trained with."""
        clean, adversarial = accuracy(self.clean_images), accuracy(self.full_attack)
        row = {
            "alpha": self.alpha,
            "epsilon": self.attack_at(epoch, self.recipe["epochs"])["eps"],
            "clean_validation_accuracy": clean,
            "adversarial_validation_accuracy": adversarial,
        }
        self.alpha = balance(clean, adversarial, otherwise=self.alpha)
        return row

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.alpha = state["alpha"]


def hybrid_loss(logits_clean: torch.Tensor, logits_adv: torch.Tensor, y: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha * CE(clean) + (1 - alpha) * CE(adversarial), each the mean over the batch; logits (B, K), labels (B,)."""
    return alpha * F.cross_entropy(logits_clean, y) + (1 - alpha) * F.cross_entropy(logits_adv, y)


def epsilon_fraction(progress: float, *, start: float, full_at: float) -> float:
    """The fraction of the full epsilon at ``progress`` in [0, 1]: from ``start``, linearly to 1 at ``full_at``."""
    return min(1.0, start + (1 - start) * progress / full_at)


def balance(clean: float, adversarial: float, *, otherwise: float) -> float:
    """alpha = Acc_adv / (Acc_adv + Acc_clean), in [0, 1/2] where the attack lowers accuracy.

    ``otherwise`` where both accuracies are 0 and the ratio says nothing.
    """
    total = adversarial + clean
    return adversarial / total if total else otherwise


METHOD = Hybrid
