"""Adversarial training on half of each batch: the other half stays clean (DWF's "FGSM-AT" and "PGD-AT" rows)."""

import torch
import torch.nn.functional as F

from moat.attacks import pgd
from moat.methods.base import AdversarialMethod, Step, accuracy


class HalfBatch(AdversarialMethod):
    """Minimize CE on a batch whose first half is attacked, by x' that maximize it, and whose rest is clean.

    The engine has shuffled the images, so which ones come first is a fresh draw in every epoch.
    """

    PARAMETERS = {"attack": {"type": "attack", "description": "PGD on the cross-entropy; one step is FGSM"}}

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        half = len(x) // 2
        with self.autocast():
            x_adv = pgd(
                self.attacked(), x[:half], y[:half], generator=step.generator("attack"), space=self.space, **self.attack
            )
        logits = self.logits(torch.cat([x_adv, x[half:]]))
        loss = F.cross_entropy(logits, y)
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits[half:], y[half:]),
            "adversarial_train_accuracy": accuracy(logits[:half], y[:half]),
        }


METHOD = HalfBatch
