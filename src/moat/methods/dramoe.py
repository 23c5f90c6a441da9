"""DRAMoE: an MoE-CNN with an attention router (DCAR), trained with router-guided adversarial training (RGAT).

Source: the DRAMoE paper; it has no public code; the recipe lists every decision that the paper leaves open.
"""

from collections.abc import Mapping
from typing import Any

import torch

from moat.attacks.parts.early_stopped import early_stopped_pgd
from moat.methods import losses
from moat.methods._moe import AlternatingMoe, entropy, joint_divergence, routing_metrics
from moat.methods.base import Step, accuracy
from moat.methods.schedules import cosine
from moat.models.moe import MoeCnn

FIFTHS = 5


class Dramoe(AlternatingMoe):
    """Early-stopped adversarial examples that also attack the router; a TRADES step of the backbone, one of the router.

    The router's loss is gamma CE(G(x), y mod n) + beta KL(G(x) || G(x')) - delta (H(G(x)) + H(G(x'))).
    """

    PARAMETERS = {
        "loss.gamma": {"type": "number", "minimum": 0, "description": "weight of the router's cross-entropy"},
        "loss.delta": {"type": "number", "minimum": 0, "description": "weight of the entropy of the router's scores"},
        "rgat.tau": {
            "type": "array",
            "minItems": 1,
            "maxItems": 5,
            "items": {"type": "integer", "minimum": 0},
            "description": "steps taken after misclassification, one value per fifth of the training",
        },
        "rgat.tau_after_paper": {
            "enum": ["hold", "continue", "no_early_stop"],
            "description": "tau of the fifths without a value: the last one, the fifth's number from 0, or all steps",
        },
        "rgat.lambda_max": {"type": "number", "minimum": 0, "description": "weight of the router's KL in the attack"},
        "rgat.lambda_schedule": {
            "enum": ["cosine_decay", "cosine_growth"],
            "description": "from lambda_max to 0 over the training, or from 0 to lambda_max",
        },
        "rgat.kl_order": {
            "enum": ["clean_adv", "adv_clean"],
            "description": "KL(clean || adversarial), or the reverse, in the attack and both losses (Eq. 9 and 10)",
        },
        "rgat.fresh_router_attack": {
            "type": "boolean",
            "description": "whether the router's step has an attack of its own, or uses the backbone's examples",
        },
    }

    def __init__(self, model: MoeCnn, recipe: Mapping[str, Any], **options: Any):
        super().__init__(model, recipe, **options)
        self.kl_order = recipe["rgat"]["kl_order"]

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        x_adv = self.adversarial(x, y, step, "attack")
        # Once for both steps: a second pass in training mode would only move the router's running statistics.
        scores, scores_adv = self.model.route_logits(x), self.model.route_logits(x_adv)
        metrics = self.backbone_step(x, x_adv, y, scores, scores_adv)

        if self.recipe["rgat"]["fresh_router_attack"]:
            scores_adv = self.model.route_logits(self.adversarial(x, y, step, "router attack"))
        loss = self.router_loss(scores, scores_adv, y)
        self.minimize(loss, "router")
        return {
            **metrics,
            "router_loss": loss.detach(),
            "router_accuracy": accuracy(scores, y % self.model.experts),
            **routing_metrics(scores, scores_adv),
        }

    def router_loss(self, scores: torch.Tensor, scores_adv: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The router's loss, from its scores (B, experts) for clean and adversarial images."""
        weight = self.loss_weights
        # In this order: autograd sums the gradients of the scores in the reverse order of these calls.
        disorder = entropy(scores) + entropy(scores_adv)
        divergence = losses.divergence(scores, scores_adv, self.kl_order).mean()
        target = self.router_cross_entropy(scores, y)
        return weight["gamma"] * target + weight["beta"] * divergence - weight["delta"] * disorder

    def adversarial(self, x: torch.Tensor, y: torch.Tensor, step: Step, purpose: str) -> torch.Tensor:
        """Early-stopped PGD on KL of F plus lambda(t) times KL of G, with the tau of this fifth of the training."""
        model = self.attacked()
        with self.autocast():
            loss = joint_divergence(
                model,
                x,
                router_weight=self.router_weight(step.progress),
                router_grad=self.router_grad,
                order=self.kl_order,
            )
            return early_stopped_pgd(
                model,
                x,
                y,
                **self.attack,
                tau=self.patience(step.progress),
                ascend_loss=loss,
                generator=step.generator(purpose),
                space=self.space,
            )

    def router_weight(self, progress: float) -> float:
        """lambda(t): half a cosine from lambda_max to 0 over the training, or from 0 to lambda_max."""
        rgat = self.recipe["rgat"]
        factor = cosine(progress, {})
        return rgat["lambda_max"] * (factor if rgat["lambda_schedule"] == "cosine_decay" else 1 - factor)

    def patience(self, progress: float) -> int:
        """tau: the recipe's value for this fifth of the training, or what ``tau_after_paper`` says."""
        rgat, fifth = self.recipe["rgat"], min(int(FIFTHS * progress + 1e-9), FIFTHS - 1)
        if fifth < len(rgat["tau"]):
            return rgat["tau"][fifth]
        if rgat["tau_after_paper"] == "no_early_stop":
            return self.attack["steps"]
        return rgat["tau"][-1] if rgat["tau_after_paper"] == "hold" else fifth


METHOD = Dramoe
