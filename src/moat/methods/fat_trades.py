"""FAT for TRADES: the TRADES loss on examples that stop early (Zhang et al., ICML 2020, Sec. 4.2 and App. A)."""

import torch

from moat.attacks.parts.objectives import divergence
from moat.methods import losses
from moat.methods.base import Step, accuracy
from moat.methods.fat import Fat


class FatTrades(Fat):
    """Minimize CE(F(x), y) + beta * KL(F(x) || F(x')), where x' increases the KL as long as FAT lets it."""

    PARAMETERS = {"loss.beta": {"type": "number", "minimum": 0, "description": "weight of the KL divergence"}}

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        x_adv = self.friendly_examples(x, y, step)
        logits_clean, logits_adv = self.logits(x), self.logits(x_adv)
        loss = losses.trades(logits_clean, logits_adv, y, self.loss_weights["beta"])
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits_clean, y),
            "adversarial_train_accuracy": accuracy(logits_adv, y),
        }

    def friendly_examples(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> torch.Tensor:
        model = self.attacked()
        with torch.no_grad():
            from_clean = divergence(self.logits(x, model))

        def kl(x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.logits(x_adv, model)
            return from_clean(logits), logits

        return self.maximize(model, kl, x, y, step)


METHOD = FatTrades
