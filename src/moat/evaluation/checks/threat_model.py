"""Do the attacks obey the threat model, and do they make the steps that they claim?"""

import math
import re

import torch

from moat.attacks.parts.setting import Attack
from moat.data.seeding import generator
from moat.evaluation.checks.registry import Finding, check, judged
from moat.evaluation.evidence import Evidence
from moat.models.outputs import predicted_class

LINF_TOLERANCE = 1e-6
# Two ways of adding up the same fraction.
ROUNDING = 1e-9
# The attacks run once more, on this many examples.
EXAMPLES = 50
# In these families, and in attacks from elsewhere, every step is a forward pass of the model.
ONE_PASS_PER_STEP = (None, "fgsm", "bim", "pgd")


@check("threat-model")
def threat_model(evidence: Evidence) -> Finding:
    """Attacks return images inside the ball and [0,1] by themselves, and make all steps that they claim.

    The results are examined before the runner's projection. An attack that claims 50 steps, by its setting or its name,
    must make at least 50 forward passes. The clean accuracy is recomputed as well.
    """
    over_eps, outside, missing, lacking = 0.0, 0.0, 0, ""
    x, y, indices = (part[:EXAMPLES] for part in next(evidence.batches()))
    for name, attack in evidence.settings.items():
        draws = [generator(evidence.seed, 0, f"evaluate {name}", batch=i) for i in indices]
        passes: list[None] = []
        with evidence.model.register_forward_pre_hook(lambda *call, passes=passes: passes.append(None)):
            attacked = attack(evidence.model, x.clone(), y.clone(), draws).float()
        eps = math.inf if attack.eps is None else attack.eps
        over_eps = max(over_eps, _excess((attacked - x).abs().amax() - eps))
        outside = max(outside, _excess((attacked - 0.5).abs().amax() - 0.5))
        short = claimed_steps(name, attack) - len(passes)
        if short > missing and attack.parameters.get("attack") in ONE_PASS_PER_STEP:
            missing, lacking = short, f"; {name} makes {len(passes)} passes through the model"
    recomputed = (predicted_class(evidence.logits) == evidence.y.cpu()).double().mean().item()
    values = {
        "over_eps": over_eps,
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
    message = (
        f"attacks exceed eps by {over_eps:.2g} and [0,1] by {outside:.2g}; clean accuracy {recomputed:.4f}{lacking}"
    )
    return judged(values, limits), values, limits, message


def claimed_steps(name: str, attack: Attack) -> int:
    """The steps that a setting claims: those of the attack or, if more, of a name like ``pgd50`` or ``PGD-50``."""
    named = re.match(r"(?:pgd|bim)[-_ ]?(\d+)", name, re.IGNORECASE)
    return max(attack.steps, int(named.group(1)) if named else 0)


def _excess(difference: torch.Tensor) -> float:
    """The positive part; infinity for NaN."""
    return math.inf if torch.isnan(difference) else max(0.0, float(difference))
