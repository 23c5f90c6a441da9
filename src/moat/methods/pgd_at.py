"""PGD adversarial training: cross-entropy on PGD examples only (Madry et al., ICLR 2018, Eq. 2.1)."""

import torch
import torch.nn.functional as F

from moat.attacks import pgd
from moat.methods.base import AdversarialMethod, Step, accuracy


class PgdAt(AdversarialMethod):
    """Minimize CE(F(x'), y), where x' maximizes it inside the L-infinity ball."""

    PARAMETERS = {"attack": {"type": "attack", "description": "PGD on the cross-entropy"}}

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            x_adv = pgd(
                self.attacked(), x, y, loss="ce", generator=step.generator("attack"), space=self.space, **self.attack
            )
        logits = self.logits(x_adv)
        loss = F.cross_entropy(logits, y)
        self.minimize(loss)
        return {"loss": loss.detach(), "adversarial_train_accuracy": accuracy(logits, y)}


METHOD = PgdAt
