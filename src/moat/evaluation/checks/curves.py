"""Does the accuracy fall as it must: with the radius, and from one step to several?"""

import math

from moat.evaluation.checks.registry import Finding, check
from moat.evaluation.evidence import Evidence


@check("monotone-epsilon")
def monotone_epsilon(evidence: Evidence) -> Finding:
    """Accuracy does not rise with the radius, and falls to chance level at the largest."""
    measured = {name: evidence.at_eps if name == "pgd" else [name] for name in evidence.sweep}
    by_radius = sorted((eps, evidence.accuracy(*measured[name])) for name, eps in evidence.sweep.items())
    curve = [evidence.accuracy("clean"), *(value for _, value in by_radius)]
    rise = max(after - before for before, after in zip(curve, curve[1:], strict=False))
    at_largest = evidence.accuracy("pgd largest")
    chance = 1 / evidence.logits.shape[1]
    limit = chance + 2 * math.sqrt(chance * (1 - chance) / len(evidence.x))
    values = {"largest_rise": rise, "accuracy_at_largest": at_largest}
    limits = {"largest_rise": evidence.slack, "accuracy_at_largest": limit}
    radii = ", ".join(f"{eps * 255:g}/255: {value:.4f}" for eps, value in by_radius)
    message = f"accuracy at 0: {curve[0]:.4f}, {radii}; chance level {chance:.4f}"
    return rise <= evidence.slack and at_largest <= limit, values, limits, message


@check("iterative-at-most-fgsm")
def iterative_at_most_fgsm(evidence: Evidence) -> Finding:
    """An iterative attack leaves no more accuracy than one step of the same radius."""
    iterative, single = evidence.accuracy("pgd"), evidence.accuracy("fgsm")
    values = {"excess": max(0.0, iterative - single)}
    message = f"accuracy {iterative:.4f} under PGD-{evidence.budget.steps}, {single:.4f} under FGSM"
    return values["excess"] <= evidence.slack, values, {"excess": evidence.slack}, message
