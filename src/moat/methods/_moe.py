"""What the MoE-CNN methods share: the model, two optimizers that take turns, and what is logged of the router."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moat.methods import losses
from moat.methods.base import Method, accuracy
from moat.models.moe import MoeCnn


class MoeMethod(Method):
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
        """Logits in float32 of ``x`` routed by ``scores`` (B, experts), computed in the recipe's precision."""
        with self.autocast():
            return self.model.classify(x, scores).float()


class AlternatingMoe(MoeMethod):
    """Backbone and router each have an optimizer, and take turns.

    The backbone's losses see routes without gradient: what would reach the router then is not used.
    """

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

    def minimize(self, loss: torch.Tensor, optimizer: str = "backbone") -> None:
        """As :meth:`Method.minimize`, with a clip of its own for each optimizer."""
        self.optimizers[optimizer].zero_grad(set_to_none=True)
        loss.backward()
        clip = self.recipe.get(self.clip_keys[optimizer])
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters_of(optimizer), clip)
        self.optimizers[optimizer].step()

    def backbone_step(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor, scores: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Step down CE(F(x), y) + beta * KL(F(x) || F(x')), images routed as the router says now."""
        with torch.no_grad():
            scores_adv = self.model.route_logits(x_adv)
        logits, logits_adv = self.classify(x, scores.detach()), self.classify(x_adv, scores_adv)
        loss = losses.trades(logits, logits_adv, y, self.loss_weights["beta"])
        self.minimize(loss, "backbone")
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits, y),
            "adversarial_train_accuracy": accuracy(logits_adv, y),
        }

    def router_cross_entropy(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """CE(G(x), y mod n), or 0 where the recipe gives the router no target."""
        if self.recipe["router_target"] == "none":
            return scores.sum() * 0
        return F.cross_entropy(scores, y % self.model.experts)


def joint_divergence(
    model: MoeCnn, x: torch.Tensor, *, router_weight: float, router_grad: str = "st", order: str = "clean_adv"
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What attacks on classifier and router together climb, per example: KL of F plus ``router_weight`` KL of G.

    Call it, and what it returns, with the model in evaluation mode.

    Args:
        router_grad: "st" follows the router's straight-through gradient through F too, "detached" does not.
        order: "clean_adv" for KL(clean || adversarial), "adv_clean" for the reverse.

    Returns:
        A function of x_adv that gives the values (B,) and the logits (B, K).
    """
    with torch.no_grad():
        clean_scores = model.route_logits(x)
        clean_logits = model.classify(x, clean_scores)

    def divergence(clean: torch.Tensor, adv: torch.Tensor) -> torch.Tensor:
        return losses.kl_per_example(*((clean, adv) if order == "clean_adv" else (adv, clean)))

    def ascend_loss(x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = model.route_logits(x_adv)
        logits = model.classify(x_adv, scores if router_grad == "st" else scores.detach())
        value = divergence(clean_logits, logits)
        return (value + router_weight * divergence(clean_scores, scores) if router_weight else value), logits

    return ascend_loss


def entropy(scores: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the softmax of scores, the mean over the batch; finite for any finite scores."""
    log_p = F.log_softmax(scores if scores.dtype == torch.float64 else scores.float(), 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def routing_metrics(scores: torch.Tensor, scores_adv: torch.Tensor) -> dict[str, torch.Tensor]:
    """Router entropy and each expert's share of the images, on clean and on adversarial images."""
    metrics = {}
    for kind, s in (("clean", scores.detach()), ("adversarial", scores_adv.detach())):
        metrics[f"router_entropy_{kind}"] = entropy(s)
        shares = F.one_hot(s.argmax(1), s.shape[1]).float().mean(0)
        metrics |= {f"expert{e}_load_{kind}": share for e, share in enumerate(shares)}
    return metrics
