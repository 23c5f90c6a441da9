"""Were the attacks strong enough: converged, as strong as attacks without gradients, no warnings from AutoAttack?"""

import functools
import sys
import warnings
from collections.abc import Callable

import torch

from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import input_gradient, random_start_point
from moat.data.seeding import generator
from moat.evaluation.checks.chance import difference_limit, upper_limit
from moat.evaluation.checks.known_models import EXAMPLES as KNOWN_EXAMPLES
from moat.evaluation.checks.known_models import broken_without_gradients
from moat.evaluation.checks.registry import Finding, check, judged
from moat.evaluation.checks.stages import ANOTHER_START, MAX_CHANGE, stage
from moat.evaluation.checks.threat_model import claimed_steps
from moat.evaluation.evidence import Evidence
from moat.evaluation.runner import classify, device_of

# On honest nets the margin fools up to 7 points more than the cross-entropy does (MART).
MAX_LOSS_DIFFERENCE = 0.08
# How much more accuracy a claimed attack may leave than ours at its radius: the studies' tolerance.
MAX_OVERSTATED = 0.02
# AutoAttack's checks look at this many examples, those of its first batch.
EXAMPLES = 250


@check("converged")
def converged(evidence: Evidence) -> Finding:
    """More steps, another start and another loss change little, and claimed attacks are as strong as ours.

    The steps are doubled until that holds, at most three times; whatever the doublings find counts in the worst case.
    """
    n = len(evidence.x)
    losses, doubled = stage(evidence, "losses"), stage(evidence, "doubled")
    restarted = [name for name in doubled.misclassified if name.endswith(ANOTHER_START)]
    last_doubling = [name for name in doubled.misclassified if name not in restarted][-1].rpartition(",")[2]
    lengthened = [name for name in doubled.misclassified if name.endswith("," + last_doubling)]
    values = {
        "losses_apart": len(losses.misclassified["margin"]) / n,
        "more_steps": len(doubled.misclassified_by(*lengthened)) / n,
        "more_starts": len(doubled.misclassified_by(*restarted)) / n,
    }
    limits = dict.fromkeys(values, upper_limit(n, MAX_CHANGE))
    limits["losses_apart"] = upper_limit(n, MAX_LOSS_DIFFERENCE)
    message = (
        f"of {n} examples, the margin loss fools {values['losses_apart']:.1%} that the cross-entropy does not, the "
        f"last doubling, to {doubled.steps} steps, {values['more_steps']:.1%} more, another start "
        f"{values['more_starts']:.1%} more; allowed for {MAX_CHANGE:.1%} and chance: {limits['more_steps']:.1%}"
    )
    values["steps"] = doubled.steps
    for name, (value, limit) in _overstated(evidence).items():
        values[name], limits[name] = value, limit
        if value > limit:
            message += f"; {name} leaves {value:.1%} more correct than PGD-{evidence.budget.steps}"
    return judged(values, limits, n=n), values, limits, message


def _overstated(evidence: Evidence) -> dict[str, tuple[float, float]]:
    """Per claimed iterative attack: the accuracy that it leaves beyond our PGD of the same radius, and its limit."""
    found = {}
    for name, attack in evidence.claims.items():
        if claimed_steps(name, attack) < 2 or not attack.eps:
            continue
        # The setting may be limited to some of the examples.
        attacked = set(evidence.frame.loc[evidence.frame["setting"] == name, "index"])
        claimed, reference = set(evidence.survivors(name)), attacked & _survivors_of_pgd(evidence, attack.eps)
        value = (len(claimed) - len(reference)) / len(attacked)
        limit = difference_limit(len(claimed ^ reference), len(attacked), MAX_OVERSTATED)
        found[f"overstated {name}"] = (value, limit)
    return found


def _survivors_of_pgd(evidence: Evidence, eps: float) -> set[int]:
    """The positions of the examples that are correct under our PGD of that radius."""
    if eps == evidence.eps:
        return set(evidence.survivors("pgd").tolist())
    setting = {"attack": "pgd", "eps": eps, "step_size": eps / 4, "steps": evidence.budget.steps}
    clean = evidence.survivors("clean")
    return set(clean.tolist()) - set(evidence.misclassified("pgd", setting, clean).tolist())


@check("black-box")
def black_box(evidence: Evidence) -> Finding:
    """Attacks without this model's gradients fool hardly any example that the attacks with gradients left correct.

    So few queries that Square would not even notice a small undefended net with its gradient cut decide nothing.
    """
    n = len(evidence.x)
    found = stage(evidence, "black box")
    values = {name: len(misclassified) / n for name, misclassified in found.misclassified.items()}
    limits = dict.fromkeys(values, upper_limit(n, MAX_CHANGE))
    each = ", ".join(f"{name} {value:.1%}" for name, value in values.items())
    message = (
        f"{len(found.before)} of {n} examples survive all attacks with gradients; attacks without fool {each} of the "
        f"{n} ({evidence.budget.queries} queries); allowed for {MAX_CHANGE:.1%} and chance: {limits['square']:.1%}"
    )
    state = judged(values, limits, n=n)
    if state != "failed":
        values["square_on_a_masked_net"] = broken_without_gradients(device_of(evidence.model), evidence.budget)
        if values["square_on_a_masked_net"] <= upper_limit(KNOWN_EXAMPLES, MAX_CHANGE):
            state = "not-enough-queries"
            message += (
                f"; so many queries break {values['square_on_a_masked_net']:.1%} of the images of a net that is not "
                "robust at all, and so decide nothing"
            )
    return state, values, limits, message


@check("autoattack-flags")
def autoattack_flags(evidence: Evidence) -> Finding:
    """AutoAttack's own checks warn neither of random outputs, nor of probabilities, nor of gradients inside the model.

    A model that computes gradients while it classifies (a "dynamic defence") needs attacks of its own, and is against
    the rules of RobustBench.

    Its warning of zero gradients is only reported: one among hundreds of examples is no gradient masking, and the check
    ``gradient`` counts them. Source: Croce et al., https://github.com/fra31/auto-attack, flags_doc.md; this calls the
    package's functions.
    """
    from pyautoattack import checks  # Here, because it takes seconds.

    logits = functools.partial(classify, evidence.model)
    x, y, indices = (part[:EXAMPLES] for part in next(evidence.batches()))
    draws = [generator(evidence.seed, 0, "autoattack check", batch=i) for i in indices]
    start = random_start_point(x, evidence.eps, "uniform", draws)
    slope = input_gradient(evidence.model, start, cross_entropy(y)).contiguous()
    warned = {
        "randomised": _warning(checks.check_randomized, logits, x, y, bs=len(x)),
        "probabilities": _warning(checks.check_range_output, logits, x),
        "dynamic": _warning(_check_dynamic, logits, x),
        "zero_gradients": _warning(checks.check_zero_gradients, slope),
    }
    values = {name: float(bool(text)) for name, text in warned.items()}
    limits = {"randomised": 0.0, "probabilities": 0.0, "dynamic": 0.0}
    message = "; ".join(text for text in warned.values() if text) or "AutoAttack's checks give no warning"
    return judged(values, limits), values, limits, message


def _check_dynamic(logits: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """AutoAttack's check of functions that compute gradients, which counts calls by name, from zero."""
    from pyautoattack import checks

    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    # The package ends all tracing: a debugger or a measurement of coverage would stop here.
    tracing = sys.gettrace()
    try:
        checks.check_dynamic(logits, x)
    finally:
        sys.settrace(tracing)


def _warning(check, *arguments, **options) -> str:
    """The warning of one of AutoAttack's checks without its link to a page; "" if there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(*arguments, **options)
    return " ".join(str(each.message).split(" See flags_doc")[0] for each in caught)
