"""Standard training: cross-entropy on the clean images; the undefended net of every comparison."""

import torch
import torch.nn.functional as F

from moat.methods.base import Method, Step, accuracy


class Standard(Method):
    """Minimize CE(F(x), y)."""

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        logits = self.logits(x)
        loss = F.cross_entropy(logits, y)
        self.minimize(loss)
        return {"loss": loss.detach(), "train_accuracy": accuracy(logits, y)}


METHOD = Standard
