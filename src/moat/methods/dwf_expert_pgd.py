"""An expert of DWF that sees PGD examples only, of another length in each batch (arXiv 2512.20821, first stage)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moat.attacks import pgd
from moat.attacks.parts.spaces import Space
from moat.base.numbers import parse_number
from moat.methods.base import AdversarialMethod, Step, accuracy
from moat.methods.dwf_expert_fgsm import draw_one


class DwfExpertPgd(AdversarialMethod):
    """Minimize CE(F(x'), y), x' from PGD whose number of steps is drawn once per batch; no clean term."""

    PARAMETERS = {
        "pgd_attack.eps": {"type": "distance", "description": "radius of the ball"},
        "pgd_attack.step_size": {"type": "distance", "description": "of each step"},
        "pgd_attack.steps": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "integer", "minimum": 1},
            "description": "one is drawn for each batch",
        },
        "pgd_attack.random_start": {"type": "random_start", "description": "as of moat.attacks.pgd"},
    }

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            x_adv = pgd_examples(self.attacked(), x, y, step, self.recipe["pgd_attack"], self.space)
        logits = self.logits(x_adv)
        loss = F.cross_entropy(logits, y)
        self.minimize(loss)
        return {"loss": loss.detach(), "adversarial_train_accuracy": accuracy(logits, y)}


def pgd_examples(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, step: Step, attack: Mapping[str, Any], space: Space
) -> torch.Tensor:
    """PGD of as many steps as are drawn from ``attack["steps"]`` for the whole batch, in units of the space."""
    return pgd(
        model,
        x,
        y,
        eps=parse_number(attack["eps"], where="pgd_attack.eps"),
        step_size=parse_number(attack["step_size"], where="pgd_attack.step_size"),
        steps=draw_one(attack["steps"], step, "pgd steps"),
        random_start=attack["random_start"],
        generator=step.generator("pgd attack"),
        space=space,
    )


METHOD = DwfExpertPgd
