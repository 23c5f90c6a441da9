"""DWF: a soft gate over nine experts, all trained on together (Divided We Fall, arXiv 2512.20821, second stage)."""

import torch
import torch.nn.functional as F

from moat.methods._pretrained import PretrainedExperts
from moat.methods.base import AdversarialMethod, Step, accuracy
from moat.methods.dwf_expert_fgsm import fgsm_examples
from moat.methods.dwf_expert_pgd import pgd_examples
from moat.models.moe import statistics
from moat.models.precision import at_least_float32


class Dwf(AdversarialMethod, PretrainedExperts):
    """Minimize CE of the whole mixture on [x, x_FGSM, x_PGD], both attacks against the whole mixture.

    The experts come from runs of their own, with other seeds; gate and all experts move.
    """

    MIXTURE = "dwf"
    PARAMETERS = {
        "fgsm_attack.eps": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "distance"},
            "description": "one is drawn for each batch",
        },
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
        images = self.expand(x, y, step)
        with self.autocast():
            logits, weights = self.model.mix(images)
        logits = at_least_float32(logits)
        loss = F.cross_entropy(logits, y.repeat(3))
        self.minimize(loss)
        return {
            "loss": loss.detach(),
            "train_accuracy": accuracy(logits[: len(y)], y),
            "adversarial_train_accuracy": accuracy(logits[len(y) :], y.repeat(2)),
            **statistics.weights("clean", weights[: len(y)]),
            **statistics.weights("adversarial", weights[len(y) :]),
        }

    def expand(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> torch.Tensor:
        """[x, x_FGSM, x_PGD] (3B, C, H, W)."""
        with self.autocast():
            x_fgsm = fgsm_examples(self.attacked(), x, y, step, self.recipe["fgsm_attack"]["eps"], self.space)
            x_pgd = pgd_examples(self.attacked(), x, y, step, self.recipe["pgd_attack"], self.space)
        return torch.cat([x, x_fgsm, x_pgd])


METHOD = Dwf
