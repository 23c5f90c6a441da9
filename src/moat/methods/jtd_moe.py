"""JTDMoE: joint training of a robust and a standard mixture whose logits are added (arXiv 2502.06832)."""

import torch
import torch.nn.functional as F

from moat.methods import losses
from moat.methods.base import Step, accuracy
from moat.methods.rt_er import CyclicAdam, by_route, second_of


class JtdMoe(CyclicAdam):
    """In turns, minimize CE(F_R(x'), y) + beta * sum_e KL(p_e(x) || p_e(x'_e)) over F_R, and CE(F(x), y) over F_S.

    x' maximizes the cross-entropy of F_R alone, x'_e that of its expert e. F = (1 - alpha) F_S + alpha F_R sees clean
    images only. Each mixture has an optimizer of its own, so that neither step moves the other one.
    """

    MIXTURE = "jtd-moe"
    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD on the robust mixture, and on each of its experts"},
        "loss.beta": {"type": "number", "minimum": 0, "description": "weight of the experts' divergences"},
        "regularise": {
            "enum": ["all", "second"],
            "description": "whose divergences count: all experts', each for the whole batch, or each image's second",
        },
    }

    optimizer_keys = {"robust": "optimizer", "standard": "optimizer"}

    def parameters_of(self, optimizer: str) -> list[torch.nn.Parameter]:
        return [each for each in getattr(self.model, optimizer).parameters() if each.requires_grad]

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        return {**self.robust_step(x, y, step), **self.standard_step(x, y)}

    def robust_step(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """One step of F_R."""
        robust, routes = self.model.robust, self._regularised(x)
        with self.autocast():
            # All before the update's own passes, which change the running statistics.
            attacked = self.attacked().robust
            x_adv = self.against(attacked, x, y, step, "attack")
            of_experts = [
                self.against(by_route(attacked, route), x, y, step, f"attack on expert {number}")
                for number, route in enumerate(routes)
            ]
        logits, divergence = self.logits(x_adv, robust), torch.zeros((), device=x.device)
        for route, moved in zip(routes, of_experts, strict=True):
            with self.autocast():
                clean, adversarial = robust.by_route(x, route), robust.by_route(moved, route)
            divergence = divergence + losses.kl(clean, adversarial)
        loss = F.cross_entropy(logits, y) + self.loss_weights["beta"] * divergence
        self.minimize(loss, "robust")
        return {
            "loss": loss.detach(),
            "adversarial_train_accuracy": accuracy(logits, y),
            "experts_divergence": divergence.detach(),
            "logit_spread_robust": logits.detach().std(1).mean(),
        }

    def standard_step(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step of F_S; F_R, which it is added to, is as it will be evaluated."""
        self.model.robust.eval()
        with torch.no_grad():
            robust = self.logits(x, self.model.robust)
        self.model.robust.train()
        standard = self.logits(x, self.model.standard)
        logits = self.model.combine(standard, robust)
        loss = F.cross_entropy(logits, y)
        self.minimize(loss, "standard")
        return {
            "standard_loss": loss.detach(),
            "train_accuracy": accuracy(logits, y),
            "logit_spread_standard": standard.detach().std(1).mean(),
        }

    def _regularised(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Routes (B,) whose experts' divergences count."""
        if self.recipe["regularise"] == "second":
            return [second_of(self.model.robust.route_logits(x))]
        experts = range(len(self.model.robust.experts))
        return [torch.full((len(x),), expert, device=x.device) for expert in experts]


METHOD = JtdMoe
