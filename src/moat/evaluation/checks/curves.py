"""Does the accuracy fall as it must: with a growing radius, and from one step to several?"""

import itertools
import math

from moat.evaluation.checks import registry
from moat.evaluation.checks.registry import Finding, check, judged
from moat.evaluation.evidence import LARGEST_EPS, Evidence

# The checks that say that an attack which fails at the largest radius fails for want of a gradient.
SIGNS = ("gradient", "gradient-agreement", "black-box")


@check("monotone-epsilon")
def monotone_epsilon(evidence: Evidence) -> Finding:
    """Accuracy does not rise with the radius; where every image is within reach, only a sound gradient leaves any.

    At the largest radius an attack can turn every image into every other, so that an accuracy above chance level says
    that the attack did not work. Against some honest models it does not; the check fails only if another one, of
    gradients or of attacks without them, says why.
    """
    settings = {name: evidence.at_eps if name == "pgd" else [name] for name in evidence.sweep}
    curve = sorted((eps, evidence.accuracy(*settings[name])) for name, eps in evidence.sweep.items())
    clean, largest = evidence.accuracy("clean"), evidence.accuracy("pgd largest")
    # Of another loss than the others, and so left out.
    rising = [clean, *(accuracy for eps, accuracy in curve if eps < LARGEST_EPS)]
    chance = 1 / evidence.logits.shape[1]
    expected = chance + 2 * math.sqrt(chance * (1 - chance) / len(evidence.x))
    signs = [name for name in SIGNS if not registry.run(name, evidence).passed] if largest > expected else []
    values = {
        "largest_rise": max((after - before for before, after in itertools.pairwise(rising)), default=0.0),
        "accuracy_at_largest": largest,
        "masked_at_largest": largest - expected if signs else 0.0,
    }
    limits = {"largest_rise": evidence.slack, "masked_at_largest": 0.0}
    radii = ", ".join(f"{eps * 255:g}/255: {accuracy:.4f}" for eps, accuracy in curve)
    message = f"accuracy at 0: {clean:.4f}, {radii}; chance level {chance:.4f}"
    if largest > expected:
        why = f"which fits {', '.join(signs)}" if signs else "but nothing else speaks against the model"
        message += f"; the attack at the largest radius does not work, {why}"
    return judged(values, limits, n=len(evidence.x)), values, limits, message


@check("iterative-at-most-fgsm")
def iterative_at_most_fgsm(evidence: Evidence) -> Finding:
    """An iterative attack leaves no more accuracy than a single step of the same radius."""
    iterative, single = evidence.accuracy("pgd"), evidence.accuracy("fgsm")
    values, limits = {"excess": max(0.0, iterative - single)}, {"excess": evidence.slack}
    message = f"accuracy {iterative:.4f} under PGD-{evidence.budget.steps}, {single:.4f} under FGSM"
    return judged(values, limits, n=len(evidence.x)), values, limits, message
