"""FAT: training on PGD examples that stop early (Zhang et al., ICML 2020, Alg. 1 and 2)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from moat.attacks.parts.early_stopped import early_stopped_pgd
from moat.methods.base import AdversarialMethod, Step, accuracy


class Fat(AdversarialMethod):
    """Minimize CE(F(x'), y), where each x' increases the CE until ``tau`` steps after it is misclassified.

    tau grows with training: it is the number of ``friendly.tau_milestones`` that are passed.
    """

    PARAMETERS = {
        "attack": {"type": "attack", "description": "PGD that stops early"},
        "friendly.tau_milestones": {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": 1},
            "description": "fractions of the training; tau, steps after misclassification, is how many are passed",
        },
        "friendly.noise": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "scale of the Gaussian noise added to each step",
        },
    }

    def __init__(self, model: torch.nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        super().__init__(model, recipe, autocast=autocast)
        self.friendly = recipe["friendly"]

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        x_adv = self.friendly_examples(x, y, step)
        logits = self.logits(x_adv)
        loss = F.cross_entropy(logits, y)
        self.minimize(loss)
        return {"loss": loss.detach(), "adversarial_train_accuracy": accuracy(logits, y)}

    def friendly_examples(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> torch.Tensor:
        """x' (B, C, H, W): PGD that leaves an example ``tau`` steps after it is misclassified."""
        model = self.attacked()

        def cross_entropy(x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.logits(x_adv, model)
            return F.cross_entropy(logits, y, reduction="none"), logits

        return self.maximize(model, cross_entropy, x, y, step)

    def maximize(self, model, loss, x: torch.Tensor, y: torch.Tensor, step: Step) -> torch.Tensor:
        """Early-stopped PGD on ``loss``, with the recipe's attack and the tau of this epoch."""
        return early_stopped_pgd(
            model,
            x,
            y,
            tau=self.tau(step),
            ascend_loss=loss,
            noise=self.friendly["noise"],
            generator=step.generator("attack"),
            space=self.space,
            **self.attack,
        )

    def tau(self, step: Step) -> int:
        """Steps that an example goes on after it is misclassified, the same throughout an epoch."""
        return sum(step.epoch / step.epochs >= milestone for milestone in self.friendly["tau_milestones"])


METHOD = Fat
