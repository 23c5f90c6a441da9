"""PGD-AT (MoE): an MoE-CNN whose backbone and router are trained together on the TRADES loss.

Named as in the comparison of DRAMoE, whose text says that all of its methods use the TRADES loss.
"""

import torch

from moat.attacks import pgd
from moat.methods import losses
from moat.methods._moe import MoeMethod, routing_metrics
from moat.methods.base import Step, accuracy
from moat.models.moe import detached_router


class PgdAtMoe(MoeMethod):
    """Minimize CE(F(x), y) + beta * KL(F(x) || F(x')) over all parameters; x' maximizes the KL inside the ball.

    The router learns through the straight-through gradient of the selected scores alone.
    """

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        attacked = self.attacked() if self.router_grad == "st" else detached_router(self.attacked())
        with self.autocast():
            x_adv = pgd(attacked, x, y, loss="kl", generator=step.generator("attack"), space=self.space, **self.attack)
        scores, scores_adv = self.model.route_logits(x), self.model.route_logits(x_adv)
        logits, logits_adv = self.classify(x, scores), self.classify(x_adv, scores_adv)
        loss = losses.trades(logits, logits_adv, y, self.loss_weights["beta"])
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits, y),
            "adversarial_train_accuracy": accuracy(logits_adv, y),
            **routing_metrics(scores, scores_adv),
        }


METHOD = PgdAtMoe
