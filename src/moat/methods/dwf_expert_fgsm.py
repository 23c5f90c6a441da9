"""An expert of DWF that sees FGSM examples only, of another epsilon in each batch (arXiv 2512.20821, first stage)."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from moat.attacks import fgsm, resolve
from moat.attacks.parts.setting import Attack
from moat.attacks.parts.spaces import Space
from moat.base.numbers import parse_number
from moat.data.seeding import generator
from moat.methods.base import AdversarialMethod, Step, accuracy

T = TypeVar("T")


class DwfExpertFgsm(AdversarialMethod):
    """Minimize CE(F(x + eps * sign(dCE/dx)), y), eps drawn once per batch; no random start and no clean term."""

    PARAMETERS = {
        "fgsm_attack.eps": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "distance"},
            "description": "one is drawn for each batch",
        },
        "watch": {
            "type": "setting",
            "description": "as in config/attacks.yaml; history.csv shows the accuracy under it after each epoch",
        },
    }

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        with self.autocast():
            x_adv = fgsm_examples(self.attacked(), x, y, step, self.recipe["fgsm_attack"]["eps"], self.space)
        logits = self.logits(x_adv)
        loss = F.cross_entropy(logits, y)
        self.minimize(loss)
        return {"loss": loss.detach(), "adversarial_train_accuracy": accuracy(logits, y)}

    def end_epoch(self, epoch: int, accuracy: Callable[[Attack], float]) -> dict[str, float]:
        # FGSM training may learn to fool one step only, and its own loss would not tell.
        return {"watched_accuracy": accuracy(resolve("watch", self.recipe["watch"]))}


def fgsm_examples(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, step: Step, eps: Sequence[float | str], space: Space
) -> torch.Tensor:
    """FGSM at one of the ``eps`` (in units of the space), drawn for the whole batch."""
    drawn = parse_number(draw_one(eps, step, "fgsm epsilon"), where="fgsm_attack.eps")
    return fgsm(model, x, y, eps=drawn, space=space)


def draw_one(values: Sequence[T], step: Step, purpose: str) -> T:
    """One of the values, each equally likely, the same for the whole batch."""
    # On the CPU whatever the device of the images: the number decides what the host does next.
    random = generator(step.seed, step.epoch, purpose, step.batch)
    return values[int(torch.randint(len(values), (), generator=random))]


METHOD = DwfExpertFgsm
