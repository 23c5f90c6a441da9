"""SoE: experts that learn to predict which of them is right (Cui et al., Synergy-of-Experts, NeurIPS 2022)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moat.attacks import pgd
from moat.base.errors import ConfigError
from moat.methods.base import AdversarialMethod, Step, accuracy
from moat.models.moe import statistics
from moat.models.moe.soe import confidence, most_confident


class Soe(AdversarialMethod):
    """Minimize L(x) + L(x'), L = mean_x sum_i omega_i CE(z_i, y) + lambda * (calibration loss of the confidences).

    The training has phases. A phase decides which model x' attacks (each expert alone, or the ensemble) and which
    expert gets the largest weight omega (the one with the lowest loss, or the most confident one).
    """

    MIXTURE = "soe"
    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD on the cross-entropy"},
        "phases": {
            "type": "array",
            "minItems": 1,
            "description": "stages of the training, one after the other",
            "items": {
                "type": "object",
                "properties": {
                    "fraction": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "maximum": 1,
                        "description": "of the training; the fractions sum to 1",
                    },
                    "attack": {
                        "enum": ["per_expert", "ensemble"],
                        "description": "one example against each expert alone, or one against the ensemble's answer",
                    },
                    "weights": {
                        "enum": ["best", "confidence"],
                        "description": "weigh the expert of the lowest loss most, or the most confident one",
                    },
                },
            },
        },
        "loss.auxiliary": {"type": "number", "minimum": 0, "description": "weight of the confidences' loss"},
        "loss.temperature": {"type": "number", "description": "of the softmax that weighs the experts"},
    }

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        total = sum(phase["fraction"] for phase in recipe["phases"])
        if not math.isclose(total, 1.0):
            raise ConfigError(f"phases: the fractions sum to {total:g}; they must sum to 1")
        super().__init__(model, recipe, autocast=autocast)

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        phase = phase_at(self.recipe["phases"], step.epoch, step.epochs)
        with self.autocast():
            x_adv = ATTACKS[phase["attack"]](self, x, y, step)
        y_adv = y.repeat(len(x_adv) // len(x))
        clean, clean_metrics = self.loss(x, y, phase["weights"], "clean")
        adversarial, adversarial_metrics = self.loss(x_adv, y_adv, phase["weights"], "adversarial")
        loss = clean + adversarial
        self.minimize(loss)
        return {"loss": loss.detach(), **clean_metrics, **adversarial_metrics}

    def loss(
        self, x: torch.Tensor, y: torch.Tensor, weighting: str, kind: str
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L(x), and the metrics of these images for history.csv; ``kind``: "clean" or "adversarial"."""
        with self.autocast():
            logits, factor = self.model.answers(x)
        losses = expert_losses(logits, y)
        weights = WEIGHTS[weighting](logits, factor, losses, self.loss_weights["temperature"])
        auxiliary = confidence_loss(logits, factor, y)
        chosen = confidence(logits, factor).detach().argmax(0)
        metrics = {
            f"{kind}_train_accuracy": accuracy(most_confident(logits, factor), y),
            f"confidence_loss_{kind}": auxiliary.detach(),
            **statistics.loads(kind, chosen, len(logits)),
        }
        return (weights * losses).sum(0).mean() + self.loss_weights["auxiliary"] * auxiliary, metrics


def expert_losses(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropies (E, B) of all experts' logits (E, B, K)."""
    labels = y.expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def confidence_loss(logits: torch.Tensor, factor: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean BCE(R_i, p_i(y)) with the target detached: an expert should be as confident as it is right.

    Where expert i predicts y, the largest probability inside R_i is detached as well, so that only the confidence head
    learns; on other images the loss also lowers an overconfident class probability.
    """
    p = F.softmax(logits, -1)
    target = p.detach().gather(-1, y.expand(len(p), -1)[..., None])[..., 0]
    largest, predicted = p.max(-1)
    largest = torch.where(predicted == y, largest.detach(), largest)
    # Rounding may put the products slightly outside [0, 1].
    return F.binary_cross_entropy((factor * largest).clamp(0, 1), target.clamp(0, 1))


def attack_experts(method: Soe, x: torch.Tensor, y: torch.Tensor, step: Step) -> torch.Tensor:
    """Adversarial examples against each expert alone (E * B, C, H, W), expert by expert."""
    return torch.cat([
        pgd(
            expert,
            x,
            y,
            loss="ce",
            generator=step.generator(f"attack on expert {number}"),
            space=method.space,
            **method.attack,
        )
        for number, expert in enumerate(method.attacked().experts)
    ])  # fmt: skip


def attack_ensemble(method: Soe, x: torch.Tensor, y: torch.Tensor, step: Step) -> torch.Tensor:
    """Adversarial examples (B, C, H, W) against the ensemble."""
    generator = step.generator("attack")
    return pgd(method.attacked(), x, y, loss="ce", generator=generator, space=method.space, **method.attack)


def phase_at(phases: list[Mapping[str, Any]], epoch: int, epochs: int) -> Mapping[str, Any]:
    """The phase of an epoch (0, 1, …). Each lasts for its ``fraction`` of the training, the last one until the end."""
    end = 0.0
    for phase in phases[:-1]:
        end += phase["fraction"]
        if epoch < round(end * epochs):
            return phase
    return phases[-1]


ATTACKS: Mapping[str, Callable[[Soe, torch.Tensor, torch.Tensor, Step], torch.Tensor]] = {
    "per_expert": attack_experts,
    "ensemble": attack_ensemble,
}
# Detached weights (E, B) that sum to 1 over the experts.
WEIGHTS: Mapping[str, Callable[..., torch.Tensor]] = {
    "best": lambda logits, factor, losses, temperature: F.softmax(-temperature * losses.detach(), 0),
    "confidence": lambda logits, factor, losses, temperature: F.softmax(
        temperature * confidence(logits, factor).detach(), 0
    ),
}

METHOD = Soe
