"""Is the mixture in order: finite router scores, no idle expert, and attacks that know its structure?"""

import math

import torch

from moat.evaluation.checks.chance import lower_limit, upper_limit
from moat.evaluation.checks.registry import Finding, check, judged, not_applicable
from moat.evaluation.checks.stages import is_mixture, stage
from moat.evaluation.evidence import Evidence

# As a fraction of an even load of classes that are equally frequent: with two experts, 5 % of the images.
MIN_LOAD = 0.1
# What attacks on the mixture's structure may add to those that follow, or detach, the router's gradient.
MAX_OVERSTATED = 0.02


@check("router")
def router(evidence: Evidence) -> Finding:
    """Router scores are finite, and every expert gets a fair part of the images, or of the weight.

    A mixture with an idle expert is a smaller net than it claims to be. The mean entropy of the softmax of the scores
    is reported as well.
    """
    model = evidence.model
    if not hasattr(model, "route_logits"):
        return not_applicable("no router")
    weighted = hasattr(model, "mix")
    scores, weights = [], []
    with torch.no_grad():
        for x, _, _ in evidence.batches():
            scores.append(model.route_logits(x).double().cpu())
            if weighted:
                weights.append(model.mix(x)[1].double().cpu())
    scores = torch.cat(scores)
    experts, floor = scores.shape[1], MIN_LOAD * _rarest(evidence.y) / scores.shape[1]
    if weighted:
        load = torch.cat(weights).mean(0)
    else:
        # Each image counts for the one expert that it is routed to, so that chance matters.
        load = torch.nn.functional.one_hot(scores.argmax(1), experts).double().mean(0)
        floor = lower_limit(len(scores), floor)
    nonfinite = float((~scores.isfinite()).any(1).double().mean())
    smallest, rerouted = 0.0, math.nan
    if nonfinite == 0:
        rows = evidence.frame[evidence.frame["setting"] == "pgd"]
        smallest = float(load.min())
        rerouted = float((rows["expert_clean"] != rows["expert_adversarial"]).mean())
    values = {
        "nonfinite": nonfinite,
        "short_of_floor": max(0.0, floor - smallest),
        "smallest_load": smallest,
        "entropy": float(torch.special.entr(scores.softmax(1)).sum(1).mean()),
        "rerouted_by_pgd": rerouted,
    }
    limits = {"nonfinite": 0.0, "short_of_floor": 0.0}
    loads = ", ".join(f"{fraction:.1%}" for fraction in load.tolist())
    message = (
        f"{nonfinite:.1%} of the images have scores that are not finite; load {loads}, at least {floor:.1%} needed; "
        f"entropy {values['entropy']:.3f} nats; PGD reroutes {rerouted:.1%}"
    )
    return judged(values, limits, n=len(scores)), values, limits, message


def _rarest(y: torch.Tensor) -> float:
    """How frequent the rarest class is, relative to the mean: an expert may be the one for that class."""
    counts = y.unique(return_counts=True)[1].double()
    return float(counts.min() / counts.mean())


@check("router-aware")
def router_aware(evidence: Evidence) -> Finding:
    """A mixture was attacked as one, and attacks on its structure add little to the plain ones.

    Hard routing hides from every gradient what the other experts would have predicted, and the straight-through
    estimate can mislead an attack as well. Whatever the additional attacks find counts in the worst case.
    """
    if not is_mixture(evidence.model):
        return not_applicable("no router and no experts")
    n = len(evidence.x)
    aware = stage(evidence, "router")
    followed, detached = (set(evidence.survivors(name)) for name in (evidence.at_eps[0], evidence.at_eps[-1]))
    values = {
        "missing_attacks": float(not aware.misclassified),
        "beyond_plain": (len(aware.before) - len(aware.after)) / n,
        "beyond_straight_through": len(followed - detached) / n,
    }
    limits = {"missing_attacks": 0.0, "beyond_plain": upper_limit(n, MAX_OVERSTATED)}
    message = (
        f"of {n} examples, PGD with the router detached fools {values['beyond_straight_through']:.1%} that PGD through "
        f"the router does not; attacks on the experts ({', '.join(aware.misclassified)}) then fool "
        f"{values['beyond_plain']:.1%}; "
        f"allowed for {MAX_OVERSTATED:.0%} and chance: {limits['beyond_plain']:.1%}"
    )
    return judged(values, limits, n=n), values, limits, message
