"""Shared by the methods that train nothing: their nets were trained by other runs."""

import torch
from torch.nn import functional as F

from moat.methods.base import Method, Step, accuracy


class Untrained(Method):
    """A method whose updates change nothing, running statistics included."""

    def train_mode(self) -> None:
        self.model.eval()

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """The loss is for the record."""
        with torch.no_grad():
            logits = self.logits(x)
        return {"loss": F.cross_entropy(logits, y), "train_accuracy": accuracy(logits, y)}
