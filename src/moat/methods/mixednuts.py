"""MixedNUTS: the numbers of its nonlinear mixture, found on a grid without any gradient (arXiv 2402.02263)."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moat.attacks.parts.objectives import target_margin
from moat.attacks.parts.steps import ascend, ball, frozen, random_start_point
from moat.base.numbers import parse_number
from moat.methods._fitted import FittedMixture
from moat.models.moe.mixednuts import nonlinear, standardized
from moat.models.outputs import predicted_class

# The grid of the released code for CIFAR-10: scale (its logarithms evenly spaced), power, shift.
SCALES = [0.05 * 100 ** (step / 7) for step in range(8)]
POWERS = [1 + 3 * step / 7 for step in range(8)]
SHIFTS = [-1.1 + 1.1 * step / 7 for step in range(8)]
# What of the robust net's successes under attack is kept by a mixture without the map, in percent.
PLAIN_KEPT = 95.0
# A weight of the accurate net that does not exceed the robust net's.
LARGEST_THRESHOLD = 1 - 1e-9
RESAMPLES = 200


@dataclass(frozen=True)
class Fit:
    """A point of the grid: M's scale, power and shift, the threshold of its margin, and the objective there."""

    scale: float
    power: float
    shift: float
    threshold: float
    objective: float

    @property
    def on_edge(self) -> bool:
        """Whether the grid ends here: a better point may lie beyond."""
        found = ((self.scale, SCALES), (self.power, POWERS), (self.shift, SHIFTS))
        return any(value in (grid[0], grid[-1]) for value, grid in found)


class MixedNutsFit(FittedMixture):
    """Choose s, p, c and alpha by the margins of the robust net h: of its errors, and of its successes under attack.

    The threshold t is passed by all but few of the successes; of the errors on clean images, as few as possible shall
    pass it, because there the accurate net cannot correct h. Then alpha = 1 / (1 + t).
    """

    MIXTURE = "mixednuts"
    PARAMETERS = {
        "fit.targets": {
            "type": "integer",
            "minimum": 1,
            "description": "the attack leads to so many classes in turn, the nearest first",
        },
        "fit.kept": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 100,
            "description": "of the robust net's successes under attack the percentage that the mixture keeps for sure",
        },
    }

    def fit(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        kept, robust = self.recipe["fit"]["kept"], self.model.experts[1]
        x_adv = torch.cat(list(self._smallest_margins(x, y)))
        with torch.no_grad():
            clean, attacked = robust(x), robust(x_adv)
        errors = clean[predicted_class(clean) != y]
        successes = attacked[predicted_class(attacked) == y]
        best = search(successes, errors, kept)
        plain = threshold(probability_margin(successes), PLAIN_KEPT)
        with torch.no_grad():
            for name in ("scale", "power", "shift"):
                getattr(self.model, name).fill_(getattr(best, name))
            self.model.alpha.fill_(1 / (1 + best.threshold))
            self.model.plain_alpha.fill_(1 / (1 + plain))
            mixed = self.model(x)
        margins = probability_margin(nonlinear(successes, best.scale, best.power, best.shift))
        low, high = bootstrap(margins, kept, self.draws("bootstrap", margins.cpu()))
        return {
            **vars(best),
            # GELU is not monotone: where no logit stands out, the map may change the robust net's class.
            "map_keeps_class": float((self.model.mapped(clean).argmax(1) == clean.argmax(1)).double().mean()),
            "alpha": 1 / (1 + best.threshold),
            "plain_alpha": 1 / (1 + plain),
            "threshold_low": low,
            "threshold_high": high,
            "on_the_edge_of_the_grid": float(best.on_edge),
            "errors": float(len(errors)),
            "successes": float(len(successes)),
            "held_out_images": float(len(y)),
            "held_out_accuracy": float((predicted_class(mixed) == y).double().mean()),
            "robust_net_accuracy": 1 - len(errors) / len(y),
        }

    def _smallest_margins(self, x: torch.Tensor, y: torch.Tensor):
        """Batches of attacked images: of all iterates against h the one with the smallest margin, won or not."""
        fit, draws = self.recipe["fit"], self.draws("fit", x)
        net, size = self.attacked().experts[1], self.recipe["batch_size"]
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            with frozen(net):
                yield smallest_margin(net, images, labels, draws, fit)


def smallest_margin(net, x: torch.Tensor, y: torch.Tensor, generator, fit: Mapping[str, Any]) -> torch.Tensor:
    """Images (B, C, H, W) with the smallest z_y - max_{k != y} z_k, of the net's standardized logits z, that were met.

    Args:
        net: images to logits, frozen.
        fit: eps, step_size, steps, and targets, the number of classes that the steps lead to in turn.
    """
    eps, step_size = (parse_number(fit[key], where=f"fit.{key}") for key in ("eps", "step_size"))
    best, least = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    labelled = torch.nn.functional.one_hot(y, net(x[:1]).shape[1]).bool()

    def watched(images: torch.Tensor) -> torch.Tensor:
        z = standardized(net(images))
        margin = (z.gather(1, y[:, None])[:, 0] - z.masked_fill(labelled, -torch.inf).amax(1)).detach()
        smaller = margin < least
        best[smaller] = images.detach()[smaller]
        least[smaller] = margin[smaller]
        return z

    with torch.no_grad():
        nearest = watched(x).masked_fill(labelled, -torch.inf).argsort(1, descending=True)
    # The last column is the label itself.
    for target in nearest[:, : min(fit["targets"], nearest.shape[1] - 1)].T:
        start = random_start_point(x, eps, True, generator)
        end = ascend(watched, start, target_margin(target, y), ball(x, eps), step_size=step_size, steps=fit["steps"])
        with torch.no_grad():
            watched(end)
    return best


def probability_margin(logits: torch.Tensor) -> torch.Tensor:
    """The greatest class probability minus the second (B,), float64, of logits (B, K)."""
    first, second = logits.double().softmax(1).topk(2, 1).values.unbind(1)
    return first - second


def threshold(margins: torch.Tensor, kept: float) -> float:
    """The margin that ``kept`` percent of (N,) are not below, at most just under 1; that bound if there are none."""
    if not len(margins):
        return LARGEST_THRESHOLD
    return min(float(margins.quantile(1 - kept / 100)), LARGEST_THRESHOLD)


def search(successes: torch.Tensor, errors: torch.Tensor, kept: float) -> Fit:
    """The best point of the grid: the smallest share of errors at or above the threshold, then the largest threshold.

    Args:
        successes: logits (N, K) of images that withstand the attack; errors: of misclassified clean ones.
    """

    def at(scale: float, power: float, shift: float) -> Fit:
        limit = threshold(probability_margin(nonlinear(successes, scale, power, shift)), kept)
        passed = probability_margin(nonlinear(errors, scale, power, shift)) >= limit
        return Fit(scale, power, shift, limit, float(passed.double().mean()) if len(errors) else 0.0)

    found = itertools.starmap(at, itertools.product(SCALES, POWERS, SHIFTS))
    return min(found, key=lambda each: (each.objective, -each.threshold))


def bootstrap(margins: torch.Tensor, kept: float, generator: torch.Generator) -> tuple[float, float]:
    """The 95 % interval of the threshold over resamples of the margins (N,)."""
    if not len(margins):
        return LARGEST_THRESHOLD, LARGEST_THRESHOLD
    draws = torch.randint(len(margins), (RESAMPLES, len(margins)), generator=generator)
    limits = torch.tensor([threshold(margins.cpu()[rows], kept) for rows in draws], dtype=torch.float64)
    return float(limits.quantile(0.025)), float(limits.quantile(0.975))


METHOD = MixedNutsFit
