"""Does the accuracy fall as it must: with a growing radius, and from one step to several?"""

import itertools
import math

from moat.evaluation.checks.registry import Finding, check, within
from moat.evaluation.evidence import Evidence


@check("monotone-epsilon")
def monotone_epsilon(evidence: Evidence) -> Finding:
    """Accuracy does not rise with the radius, and falls to chance level at the largest one."""
    settings = {name: evidence.at_eps if name == "pgd" else [name] for name in evidence.sweep}
    by_radius = sorted((eps, evidence.accuracy(*settings[name])) for name, eps in evidence.sweep.items())
    curve = [evidence.accuracy("clean"), *(accuracy for _, accuracy in by_radius)]
    rise = max(after - before for before, after in itertools.pairwise(curve))
    chance = 1 / evidence.logits.shape[1]
    values = {"largest_rise": rise, "accuracy_at_largest": evidence.accuracy("pgd largest")}
    limits = {
        "largest_rise": evidence.slack,
        "accuracy_at_largest": chance + 2 * math.sqrt(chance * (1 - chance) / len(evidence.x)),
    }
    radii = ", ".join(f"{eps * 255:g}/255: {accuracy:.4f}" for eps, accuracy in by_radius)
    message = f"accuracy at 0: {curve[0]:.4f}, {radii}; chance level {chance:.4f}"
    return within(values, limits), values, limits, message


@check("iterative-at-most-fgsm")
def iterative_at_most_fgsm(evidence: Evidence) -> Finding:
    """An iterative attack leaves no more accuracy than a single step of the same radius."""
    iterative, single = evidence.accuracy("pgd"), evidence.accuracy("fgsm")
    values, limits = {"excess": max(0.0, iterative - single)}, {"excess": evidence.slack}
    message = f"accuracy {iterative:.4f} under PGD-{evidence.budget.steps}, {single:.4f} under FGSM"
    return within(values, limits), values, limits, message
