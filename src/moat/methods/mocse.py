"""MoCSE: one expert per class, trained on clean images (arXiv 2311.10177, Section 3)."""

import torch
import torch.nn.functional as F

from moat.methods.base import Method, Step, accuracy
from moat.models.precision import at_least_float32


class Mocse(Method):
    """Minimize CE(F(x), y) + w * mean_n BCE_n, BCE_n the loss of expert n on whether an image is of class n."""

    MIXTURE = "mocse"
    PARAMETERS = {"loss.binary": {"type": "number", "minimum": 0, "description": "weight of the experts' mean BCE"}}

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        return self.fit(x, y, "train_accuracy")

    def fit(self, x: torch.Tensor, y: torch.Tensor, accuracy_name: str) -> dict[str, torch.Tensor]:
        """One step on the loss of the given images."""
        with self.autocast():
            answers = at_least_float32(self.model.answers(x))
        logits = self.model.aggregate(answers)
        aggregated, binary = F.cross_entropy(logits, y), binary_losses(answers, y).mean()
        loss = aggregated + self.loss_weights["binary"] * binary
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "aggregated_loss": aggregated.detach(),
            "binary_loss": binary.detach(),
            accuracy_name: accuracy(logits, y),
        }


def binary_losses(answers: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """BCE_n (E,): the mean two-way cross-entropy of expert n's answers (E, B, 2) with the target [y == n]."""
    classes = torch.arange(len(answers), device=y.device)
    targets = (y == classes[:, None]).long()
    return F.cross_entropy(answers.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).mean(1)


METHOD = Mocse
