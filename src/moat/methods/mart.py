"""MART: adversarial training that weighs misclassified examples more (Wang et al., ICLR 2020, Eq. 11)."""

import torch

from moat.attacks import pgd
from moat.methods import losses
from moat.methods.base import AdversarialMethod, Step, accuracy


class Mart(AdversarialMethod):
    """Minimize BCE(F(x'), y) + beta * KL(F(x) || F(x')) * (1 - p_y(x)), where x' maximizes CE(F(x'), y) in the ball.

    Nothing is detached: the weight 1 - p_y(x) of the KL passes a gradient on, too.
    """

    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD on the cross-entropy"},
        "loss.beta": {"type": "number", "minimum": 0, "description": "weight of the KL divergence, lambda"},
    }

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            x_adv = pgd(
                self.attacked(), x, y, loss="ce", generator=step.generator("attack"), space=self.space, **self.attack
            )
        logits_clean, logits_adv = self.logits(x), self.logits(x_adv)
        loss = losses.mart(logits_clean, logits_adv, y, self.loss_weights["beta"])
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits_clean, y),
            "adversarial_train_accuracy": accuracy(logits_adv, y),
        }


METHOD = Mart
