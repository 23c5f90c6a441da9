"""ADVMoE: alternating adversarial training of backbone and router of an MoE-CNN.

Source: Zhang et al., Robust Mixture-of-Expert Training for Convolutional Neural Networks, ICCV 2023, as its
released code trains. The router's loss is not the classification loss: its target is the label modulo n.
"""

import torch

from moat.attacks.parts.early_stopped import early_stopped_pgd
from moat.methods import losses
from moat.methods._moe import AlternatingMoe, joint_divergence, routing_metrics
from moat.methods.base import Step, accuracy


class AdvMoe(AlternatingMoe):
    """A TRADES step for the backbone, then a similar one for the router, each with an attack on both.

    The attack maximizes KL(F(x) || F(x')) + KL(G(x) || G(x')). All divergences are computed from log-softmax and the
    router's gradient is clipped: with the released code's KL the router is NaN from the third batch on.
    """

    PARAMETERS = {
        "loss.alpha": {"type": "number", "minimum": 0, "description": "weight of the router's cross-entropy"},
    }

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        x_adv = self.adversarial(x, y, step.generator("attack"))
        scores = self.model.route_logits(x)
        with torch.no_grad():
            # Not of use to the router's step, which has an attack of its own.
            scores_adv = self.model.route_logits(x_adv)
        metrics = self.backbone_step(x, x_adv, y, scores, scores_adv)

        x_adv = self.adversarial(x, y, step.generator("router attack"))
        scores_adv = self.model.route_logits(x_adv)
        alpha, beta = self.loss_weights["alpha"], self.loss_weights["beta"]
        loss = alpha * self.router_cross_entropy(scores, y) + beta * losses.kl(scores, scores_adv)
        self.minimize(loss, "router")
        return {
            **metrics,
            "router_loss": loss.detach(),
            "router_accuracy": accuracy(scores, y % self.model.experts),
            **routing_metrics(scores, scores_adv),
        }

    def adversarial(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """PGD on classifier and router together, against the current model."""
        model = self.attacked()
        with self.autocast():
            loss = joint_divergence(model, x, router_weight=1.0, router_grad=self.router_grad)
            # A patience of all steps: nothing is stopped.
            return early_stopped_pgd(
                model,
                x,
                y,
                **self.attack,
                tau=self.attack["steps"],
                ascend_loss=loss,
                generator=generator,
                space=self.space,
            )


METHOD = AdvMoe
