"""Were the attacks strong enough: converged, better than those without gradients, without AutoAttack's warnings?"""

import warnings

import torch

from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import input_gradient, random_start_point
from moat.data.seeding import generator
from moat.evaluation.checks.chance import most_allowed, most_apart
from moat.evaluation.checks.registry import Finding, check, keeps
from moat.evaluation.checks.stages import ANOTHER_START, MOST_MOVED, Stage, stage
from moat.evaluation.checks.threat_model import claimed_steps
from moat.evaluation.evidence import Evidence
from moat.evaluation.runner import classify

# On honest nets the margin breaks up to 7 points more than the cross-entropy does (MART).
MOST_LOSSES_APART = 0.08
# What a claimed attack may leave standing beyond ours at its radius: the studies' tolerance.
MOST_OVERSTATED = 0.02
# Examples that AutoAttack's own checks look at, as many as it would in its first batch.
CHECKED = 250


@check("converged")
def converged(evidence: Evidence) -> Finding:
    """More work changes little: twice the steps or starts, another loss; claimed attacks are as strong as ours.

    Steps are doubled until that is so, three times at most; what they break counts in the worst case.
    """
    n = len(evidence.x)
    losses, doubled = stage(evidence, "losses"), stage(evidence, "doubled")
    names = {key: [name for name in doubled.broken if name.endswith(key)] for key in (ANOTHER_START, _last(doubled))}
    started, lengthened = (len(doubled.broken_by(*found)) / n for found in names.values())
    values = {"losses_apart": len(losses.broken["margin"]) / n, "more_steps": lengthened, "more_starts": started}
    limits = dict.fromkeys(values, most_allowed(n, MOST_MOVED)) | {"losses_apart": most_allowed(n, MOST_LOSSES_APART)}
    values["steps"] = doubled.steps
    message = (
        f"of {n} examples, the margin loss breaks {values['losses_apart']:.1%} that the cross-entropy leaves; the last "
        f"doubling, to {doubled.steps} steps, {lengthened:.1%} more, another start {started:.1%}; allowed for "
        f"{MOST_MOVED:.1%} and chance: {limits['more_steps']:.1%}"
    )
    for name, (value, limit) in _overstated(evidence).items():
        values[name], limits[name] = value, limit
        if value > limit:
            message += f"; {name} leaves {value:.1%} more standing than PGD-{evidence.budget.steps}"
    return keeps(values, limits), values, limits, message


def _last(doubled: Stage) -> str:
    """How the names of the last doubling's attacks end."""
    last = [name for name in doubled.broken if not name.endswith(ANOTHER_START)][-1]
    return "," + last.rpartition(",")[2]


def _overstated(evidence: Evidence) -> dict[str, tuple[float, float]]:
    """Per claimed iterative attack: accuracy left beyond that of our PGD at its radius, and the limit of that."""
    found = {}
    for name, attack in evidence.claims.items():
        if claimed_steps(name, attack) < 2 or not attack.eps:
            continue
        # A setting may have a limit of its own.
        attacked = set(evidence.frame.loc[evidence.frame["setting"] == name, "index"])
        claimed, reference = set(evidence.survivors(name)), attacked & set(_reference(evidence, attack.eps))
        value = (len(claimed) - len(reference)) / len(attacked)
        limit = most_apart(len(claimed ^ reference), len(attacked), MOST_OVERSTATED)
        found[f"overstated {name}"] = (value, limit)
    return found


def _reference(evidence: Evidence, eps: float) -> list[int]:
    """Positions of the examples that survive our PGD of that radius."""
    if eps == evidence.eps:
        return evidence.survivors("pgd").tolist()
    setting = {"attack": "pgd", "eps": eps, "step_size": eps / 4, "steps": evidence.budget.steps}
    everything = evidence.survivors("clean")
    broken = evidence.broken("pgd", setting, everything)
    return sorted(set(everything.tolist()) - set(broken.tolist()))


@check("black-box")
def black_box(evidence: Evidence) -> Finding:
    """Attacks without this model's gradients break none that all attacks with them have left, example by example."""
    n = len(evidence.x)
    found = stage(evidence, "black box")
    values = {name: len(broken) / n for name, broken in found.broken.items()}
    limits = dict.fromkeys(values, most_allowed(n, MOST_MOVED))
    each = ", ".join(f"{name} {value:.1%}" for name, value in values.items())
    message = (
        f"{len(found.before)} of {n} examples survive all attacks with gradients; attacks without break {each} of the "
        f"{n} ({evidence.budget.queries} queries); allowed for {MOST_MOVED:.1%} and chance: {limits['square']:.1%}"
    )
    return keeps(values, limits), values, limits, message


@check("autoattack-flags")
def autoattack_flags(evidence: Evidence) -> Finding:
    """The warnings that AutoAttack gives before it starts: random outputs, probabilities for logits, zero gradients.

    Source: Croce et al., https://github.com/fra31/auto-attack, flags_doc.md; asked of the package itself.
    """
    from pyautoattack import checks

    x, y, indices = next(evidence.batches())
    x, y = x[:CHECKED], y[:CHECKED]
    slope = _slope_at_start(evidence, x, y, list(indices)[:CHECKED])
    flags = {
        "randomised": _warned(checks.check_randomized, _Logits(evidence.model), x, y, bs=len(x)),
        "probabilities": _warned(checks.check_range_output, _Logits(evidence.model), x),
        "zero_gradients": _warned(checks.check_zero_gradients, slope),
    }
    # One zero among hundreds is no masking: the gradient check counts them.
    values = {name: float(bool(text)) for name, text in flags.items()}
    limits = {"randomised": 0.0, "probabilities": 0.0}
    said = [text for text in flags.values() if text]
    return keeps(values, limits), values, limits, "; ".join(said) or "AutoAttack's checks give no warning"


class _Logits:
    """The model as AutoAttack's checks call it, judged as everywhere."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return classify(self.model, x)


def _slope_at_start(evidence: Evidence, x: torch.Tensor, y: torch.Tensor, indices: list[int]) -> torch.Tensor:
    draws = [generator(evidence.seed, 0, "autoattack check", batch=i) for i in indices]
    start = random_start_point(x, evidence.eps, "uniform", draws)
    return input_gradient(evidence.model, start, cross_entropy(y)).contiguous()


def _warned(check, *arguments, **options) -> str:
    """What a check of AutoAttack warns of, without its reference to a page; "" for nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(*arguments, **options)
    return " ".join(str(each.message).split(" See flags_doc")[0] for each in caught)
