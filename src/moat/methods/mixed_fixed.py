"""Fixed mix: an accurate and a robust net, mixed in probabilities with a constant weight (arXiv 2301.12554)."""

import torch

from moat.attacks import pgd
from moat.base.numbers import parse_number
from moat.methods._fitted import FittedMixture
from moat.models.outputs import predicted_class


class MixedFixed(FittedMixture):
    """Take the smallest weight of the robust net at which the mixture loses at most so much of that net's robustness.

    Robust is what is right under PGD on the mixture and on the images that PGD finds against the robust net alone,
    whose gradient a confident accurate net cannot hide.
    """

    MIXTURE = "mixed-fixed"
    PARAMETERS = {
        "fit.alphas": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "number", "minimum": 0, "maximum": 1},
            "description": "the weights of the robust net that are tried",
        },
        "fit.max_loss": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "of the robust net's accuracy under attack, as a fraction of all images",
        },
    }

    def fit(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        fit = self.recipe["fit"]
        x_robust = self._attacked_images(self.attacked().experts[1], x, y)
        with torch.no_grad():
            robust = self.model.experts[1]
            clean, needed = _rate(robust(x), y), _rate(robust(x_robust), y) - fit["max_loss"]
        found = {"robust_net_clean": clean, "robust_net_attacked": needed + fit["max_loss"]}
        chosen = max(fit["alphas"])
        # From the largest weight down: at equal accuracy, the smaller one is taken.
        for alpha in sorted(fit["alphas"], reverse=True):
            self._set(alpha)
            x_mixed = self._attacked_images(self.attacked(), x, y)
            with torch.no_grad():
                survived = (predicted_class(self.model(x_robust)) == y) & (predicted_class(self.model(x_mixed)) == y)
                found[f"clean_at_{alpha:g}"] = _rate(self.model(x), y)
            found[f"attacked_at_{alpha:g}"] = rate = float(survived.double().mean())
            if rate >= needed:
                chosen = alpha
        self._set(chosen)
        return {"alpha": chosen, "held_out_images": float(len(y)), **found}

    def _set(self, alpha: float) -> None:
        with torch.no_grad():
            self.model.alpha.fill_(alpha)

    def _attacked_images(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        fit = self.recipe["fit"]
        distances = {key: parse_number(fit[key], where=f"fit.{key}") for key in ("eps", "step_size")}
        size = self.recipe["batch_size"]
        draws = self.draws("fit", x)
        parts = [
            pgd(model, images, labels, steps=fit["steps"], generator=draws, **distances)
            for images, labels in zip(x.split(size), y.split(size), strict=True)
        ]
        return torch.cat(parts)


def _rate(logits: torch.Tensor, y: torch.Tensor) -> float:
    """The fraction that is classified correctly."""
    return float((predicted_class(logits) == y).double().mean())


METHOD = MixedFixed
