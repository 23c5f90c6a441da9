"""Is what the attacks return allowed, and did they do what they say?"""

import math
import re

import torch

from moat.attacks.parts.setting import Attack
from moat.data.seeding import generator
from moat.evaluation.checks.registry import Finding, check, keeps
from moat.evaluation.evidence import Evidence

LINF_TOLERANCE = 1e-6
# Two ways of adding up the same fraction.
ROUNDING = 1e-9
# Attacks are run a second time for this, on so many examples.
CHECKED = 50
# Of these, and of attacks from elsewhere, every step is a forward pass of the model itself.
COUNTED = (None, "fgsm", "bim", "pgd")


@check("threat-model")
def threat_model(evidence: Evidence) -> Finding:
    """The attacks' own results, before the runner's projection, are images in the ball; clean accuracy is right.

    An attack that says "50 steps", in its record or by its name, makes 50 passes through the model at least.
    """
    excess, outside, missing, weakest = 0.0, 0.0, 0, ""
    x, y, indices = (part[:CHECKED] for part in next(evidence.batches()))
    for name, attack in evidence.settings.items():
        draws = [generator(evidence.seed, 0, f"evaluate {name}", batch=i) for i in indices]
        with _Passes(evidence.model) as passes:
            raw = attack(evidence.model, x.clone(), y.clone(), draws).float()
        excess = max(excess, _over((raw - x).abs().amax() - (math.inf if attack.eps is None else attack.eps)))
        outside = max(outside, _over((raw - 0.5).abs().amax() - 0.5))
        lacking = claimed_steps(name, attack) - passes.count
        if lacking > missing and attack.parameters.get("attack") in COUNTED:
            missing, weakest = lacking, f"; {name} makes {passes.count} passes through the model"
    recomputed = (evidence.logits.argmax(1) == evidence.y.cpu()).double().mean().item()
    values = {
        "over_eps": excess,
        "outside_pixels": outside,
        "clean_accuracy_difference": abs(recomputed - evidence.accuracy("clean")),
        "missing_steps": missing,
    }
    limits = {
        "over_eps": LINF_TOLERANCE,
        "outside_pixels": LINF_TOLERANCE,
        "clean_accuracy_difference": ROUNDING,
        "missing_steps": 0,
    }
    message = f"attacks exceed eps by {excess:.2g} and [0,1] by {outside:.2g}; clean accuracy {recomputed:.4f}{weakest}"
    return keeps(values, limits), values, limits, message


def claimed_steps(name: str, attack: Attack) -> int:
    """The steps that a setting says it makes: as recorded, or, if more, by a name like ``pgd50`` or ``PGD-50``."""
    named = re.match(r"(?:pgd|bim)[-_ ]?(\d+)", name, re.IGNORECASE)
    return max(attack.steps, int(named.group(1)) if named else 0)


class _Passes:
    """Counts the forward passes of a model while it is entered."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.count = model, 0

    def __enter__(self) -> "_Passes":
        self.hook = self.model.register_forward_pre_hook(self._add)
        return self

    def __exit__(self, *exception) -> None:
        self.hook.remove()

    def _add(self, module, inputs) -> None:
        self.count += 1


def _over(excess: torch.Tensor) -> float:
    """How far above 0; NaN counts as infinitely far."""
    return math.inf if torch.isnan(excess) else max(0.0, float(excess))
