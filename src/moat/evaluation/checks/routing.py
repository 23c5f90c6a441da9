"""Is the router in order: finite scores, experts that are used, attacks that know about it?"""

import math

import torch

from moat.evaluation.checks.chance import least_allowed, most_allowed
from moat.evaluation.checks.registry import Finding, check, keeps, not_applicable
from moat.evaluation.checks.stages import is_mixture, stage
from moat.evaluation.evidence import Evidence

# Of an even share: with two experts, 5 % of the images.
LEAST_LOAD = 0.1
# What attacks that know the mixture may break beyond those that only follow, and cut, the router's gradient.
MOST_OVERSTATED = 0.02


@check("router")
def router(evidence: Evidence) -> Finding:
    """Router scores are numbers, and every expert is used: by the share of the images, or of the weight, it gets.

    An expert that gets nothing is no expert: the mixture is a smaller net than it says. The mean entropy of the
    softmax of the scores is reported.
    """
    if not hasattr(evidence.model, "route_logits"):
        return not_applicable("no router")
    scores, weights = _route(evidence)
    nonfinite = float((~scores.isfinite()).any(1).double().mean())
    load, entropy = weights.mean(0), torch.special.entr(scores.softmax(1)).sum(1).mean()
    floor = LEAST_LOAD / scores.shape[1]
    if not hasattr(evidence.model, "mix"):
        # Whole images are counted, not weights.
        floor = least_allowed(len(scores), floor)
    smallest = float(load.min()) if nonfinite == 0 else 0.0
    values = {"nonfinite": nonfinite, "short_of_floor": max(0.0, floor - smallest), "smallest_load": smallest}
    values |= {"entropy": float(entropy), "rerouted_by_pgd": _rerouted(evidence) if nonfinite == 0 else math.nan}
    limits = {"nonfinite": 0.0, "short_of_floor": 0.0}
    loads = ", ".join(f"{share:.1%}" for share in load.tolist())
    message = (
        f"{nonfinite:.1%} of the images have scores that are not finite; load {loads}, at least {floor:.1%} needed; "
        f"entropy {values['entropy']:.3f} nats; PGD reroutes {values['rerouted_by_pgd']:.1%}"
    )
    return keeps(values, limits), values, limits, message


def _route(evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, E), and the weights (N, E) by which the experts are heard: a mixture's own, else 0 and 1."""
    scores, weights = [], []
    with torch.no_grad():
        for x, _, _ in evidence.batches():
            scores.append(evidence.model.route_logits(x).double().cpu())
            if hasattr(evidence.model, "mix"):
                weights.append(evidence.model.mix(x)[1].double().cpu())
    scores = torch.cat(scores)
    if weights:
        return scores, torch.cat(weights)
    return scores, torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).double()


def _rerouted(evidence: Evidence) -> float:
    rows = evidence.frame[evidence.frame["setting"] == "pgd"]
    return float((rows["expert_clean"] != rows["expert_adversarial"]).mean())


@check("router-aware")
def router_aware(evidence: Evidence) -> Finding:
    """A mixture was attacked as one, and plain attacks with and without the router's gradient did not overstate it.

    A hard route hides what the other experts would have done from every gradient; the straight-through estimate
    of it can do harm, too. What such attacks break beyond the others counts in the worst case.
    """
    if not is_mixture(evidence.model):
        return not_applicable("no router and no experts")
    n = len(evidence.x)
    aware = stage(evidence, "router")
    followed, cut = (set(evidence.survivors(name)) for name in (evidence.at_eps[0], evidence.at_eps[-1]))
    values = {
        "missing_attacks": float(not aware.broken),
        "beyond_plain": (len(aware.before) - len(aware.after)) / n,
        "beyond_straight_through": len(followed - cut) / n,
    }
    limits = {"missing_attacks": 0.0, "beyond_plain": most_allowed(n, MOST_OVERSTATED)}
    message = (
        f"of {n} examples, PGD with the router detached breaks {values['beyond_straight_through']:.1%} that PGD "
        f"through it leaves; after both, attacks on the experts ({', '.join(aware.broken)}) break "
        f"{values['beyond_plain']:.1%}; "
        f"allowed for {MOST_OVERSTATED:.0%} and chance: {limits['beyond_plain']:.1%}"
    )
    return keeps(values, limits), values, limits, message
