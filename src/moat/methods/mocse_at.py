"""MoCSE with adversarial training: the same loss, on PGD examples only (arXiv 2311.10177, Section 4)."""

import torch

from moat.attacks import pgd
from moat.methods.base import AdversarialMethod, Step
from moat.methods.mocse import Mocse


class MocseAt(AdversarialMethod, Mocse):
    """The loss of MoCSE at x', which maximizes the cross-entropy of the aggregated scores inside the ball."""

    PARAMETERS = {"attack": {"type": "attack", "description": "PGD on the aggregated class scores"}}

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            x_adv = pgd(
                self.attacked(), x, y, loss="ce", generator=step.generator("attack"), space=self.space, **self.attack
            )
        return self.fit(x_adv, y, "adversarial_train_accuracy")


METHOD = MocseAt
