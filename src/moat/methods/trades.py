"""TRADES: clean cross-entropy plus a KL term towards the worst case (Zhang et al., ICML 2019, Eq. 5)."""

import torch

from moat.attacks import pgd
from moat.methods import losses
from moat.methods.base import AdversarialMethod, Step, accuracy


class Trades(AdversarialMethod):
    """Minimize CE(F(x), y) + beta * KL(F(x) || F(x')), where x' maximizes the KL inside the ball.

    The gradient flows through both arguments of the KL, as in the official code.
    """

    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD on the KL divergence"},
        "loss.beta": {"type": "number", "minimum": 0, "description": "weight of the KL divergence, 1/lambda"},
    }

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            x_adv = pgd(
                self.attacked(), x, y, loss="kl", generator=step.generator("attack"), space=self.space, **self.attack
            )
        logits_clean, logits_adv = self.logits(x), self.logits(x_adv)
        loss = losses.trades(logits_clean, logits_adv, y, self.loss_weights["beta"])
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits_clean, y),
            "adversarial_train_accuracy": accuracy(logits_adv, y),
        }


METHOD = Trades
