"""Shared by the MoE-CNN methods: alternating optimizers, the attack on classifier and router, router statistics."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moat.methods import losses
from moat.methods.base import AdversarialMethod, accuracy
from moat.models.moe import MoeCnn
from moat.models.precision import at_least_float32


class MoeMethod(AdversarialMethod):
    """A method that trains an MoE-CNN."""

    MIXTURE = "moe-cnn"
    PARAMETERS = {
        "attack": {"type": "attack", "description": "on classifier and router"},
        "attack.router_grad": {
            "enum": ["st", "detached"],
            "default": "st",
            "description": "st: the attack follows the router's straight-through gradient; detached: it does not",
        },
        "loss.beta": {"type": "number", "minimum": 0, "description": "weight of the KL divergence"},
    }

    model: MoeCnn

    def __init__(self, model: MoeCnn, recipe: Mapping[str, Any], **options: Any):
        super().__init__(model, recipe, **options)
        self.router_grad = self.attack.pop("router_grad")

    def classify(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits, float32 or wider, of ``x`` routed by ``scores`` (B, experts), computed in the recipe's precision."""
        with self.autocast():
            return at_least_float32(self.model.classify(x, scores))


class AlternatingMoe(MoeMethod):
    """Backbone and router have an optimizer each and are updated in turns.

    The backbone's losses use detached routes, because a gradient that reached the router would not be used.
    """

    #: Of all KL divergences between clean and adversarial outputs, as in :func:`moat.methods.losses.divergence`.
    kl_order = "clean_adv"

    PARAMETERS = {
        "router_optimizer": {
            "type": "optimizer",
            # A scale that changes the backbone's learning rate means the router's, too.
            "follows": "optimizer",
            "description": "of the router; optimizer is the backbone's",
        },
        "router_gradient_clip": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "description": "largest norm of the router's gradient; gradient_clip is the backbone's",
        },
        "router_target": {
            "enum": ["y_mod_n", "none"],
            "description": "of the router's cross-entropy: the label modulo the number of experts, or no such term",
        },
    }

    optimizer_keys = {"backbone": "optimizer", "router": "router_optimizer"}
    clip_keys = {"backbone": "gradient_clip", "router": "router_gradient_clip"}

    def parameters_of(self, optimizer: str) -> list[nn.Parameter]:
        of_router = {id(parameter) for parameter in self.model.router.parameters()}
        return [p for p in self.model.parameters() if (id(p) in of_router) == (optimizer == "router")]

    def backbone_step(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor, scores: torch.Tensor, scores_adv: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Update the backbone on CE(F(x), y) + beta * KL(F(x) || F(x')), routed by the scores (B, experts) given."""
        logits, logits_adv = self.classify(x, scores.detach()), self.classify(x_adv, scores_adv.detach())
        loss = losses.trades(logits, logits_adv, y, self.loss_weights["beta"], order=self.kl_order)
        self.minimize(loss, "backbone")
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits, y),
            "adversarial_train_accuracy": accuracy(logits_adv, y),
        }

    def router_cross_entropy(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """CE(G(x), y mod n), or 0 if the recipe gives the router no target."""
        if self.recipe["router_target"] == "none":
            return scores.sum() * 0
        return F.cross_entropy(scores, y % self.model.experts)


def joint_divergence(
    model: MoeCnn, x: torch.Tensor, *, router_weight: float, router_grad: str = "st", order: str = "clean_adv"
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The objective of attacks on classifier and router together: KL of F plus ``router_weight`` times KL of G.

    The model must be in evaluation mode, here and when the returned function is called.

    Args:
        router_grad: "st" also follows the router's straight-through gradient through F, "detached" does not.
        order: of both divergences, as in :func:`moat.methods.losses.divergence`.

    Returns:
        A function of x_adv that returns the objective (B,) and the logits (B, K).
    """
    with torch.no_grad():
        clean_scores = model.route_logits(x)
        clean_logits = model.classify(x, clean_scores)

    def objective(x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = model.route_logits(x_adv)
        logits = model.classify(x_adv, scores if router_grad == "st" else scores.detach())
        value = losses.divergence(clean_logits, logits, order)
        if router_weight:
            value = value + router_weight * losses.divergence(clean_scores, scores, order)
        return value, logits

    return objective


def entropy(scores: torch.Tensor) -> torch.Tensor:
    """Mean entropy (nats) of the softmax of a batch of scores; finite for any finite scores."""
    log_p = F.log_softmax(at_least_float32(scores), 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def routing_metrics(scores: torch.Tensor, scores_adv: torch.Tensor) -> dict[str, torch.Tensor]:
    """Router entropy, and the fraction of the images sent to each expert, for clean and adversarial images."""
    metrics = {}
    for kind, s in (("clean", scores.detach()), ("adversarial", scores_adv.detach())):
        metrics[f"router_entropy_{kind}"] = entropy(s)
        loads = F.one_hot(s.argmax(1), s.shape[1]).float().mean(0)
        metrics |= {f"expert{e}_load_{kind}": load for e, load in enumerate(loads)}
    return metrics
