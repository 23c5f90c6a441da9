"""Training on noisy images, a baseline of randomised smoothing (Cohen et al., ICML 2019, Sec. 3.3)."""

import torch
import torch.nn.functional as F

from moat.methods.base import Method, Step, accuracy


class NoisyTraining(Method):
    """Minimize CE(F(x + sigma n), y), n standard normal, drawn anew for each batch."""

    PARAMETERS = {
        "noise.sigma": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": 0.125,
            "description": "standard deviation in pixel units",
        },
    }

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        noise = torch.empty_like(x).normal_(generator=step.generator("noise"))
        logits = self.logits(x + self.recipe["noise"]["sigma"] * noise)
        loss = F.cross_entropy(logits, y)
        self.minimize(loss)
        return {"loss": loss.detach(), "train_accuracy": accuracy(logits, y)}


METHOD = NoisyTraining
