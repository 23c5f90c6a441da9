"""Are the model's outputs fit to be attacked: deterministic, finite, and not saturated?"""

import math

import torch

from moat.base.errors import MoatError
from moat.data.seeding import generator
from moat.evaluation.checks.chance import upper_limit
from moat.evaluation.checks.registry import Finding, check, judged, not_applicable
from moat.evaluation.checks.stages import worst_case_correct
from moat.evaluation.evidence import Evidence
from moat.evaluation.fresh_judge import TOLERANCE, centred_size, lead
from moat.models.outputs import predicted_class

# Relative to an example's largest logit, less their mean.
REPEAT_TOLERANCE = 1e-4
# At a larger margin all other classes have a probability that is zero in float32, and so has the cross-entropy's
# gradient.
SATURATED_MARGIN = -math.log(torch.finfo(torch.float32).tiny)
MAX_SATURATED = 0.05


@check("determinism")
def determinism(evidence: Evidence) -> Finding:
    """An image gets the same logits when it is classified again, in batches of another size, or in another order."""
    n, batch = len(evidence.x), evidence.batch_size
    shuffled = torch.randperm(n, generator=generator(evidence.seed, 0, "determinism check")).tolist()
    again = {
        "repeated": evidence.classify(range(n), batch),
        "other_batch_size": evidence.classify(range(n), max(1, min(n, batch) // 3)),
        "other_order": evidence.classify(shuffled, batch),
    }
    limits = {name: REPEAT_TOLERANCE if name == "repeated" else TOLERANCE for name in again}
    values = {name: float(_change(evidence.logits, logits).max()) for name, logits in again.items()}
    changed = {
        name: (predicted_class(logits) != predicted_class(evidence.logits))
        & ~(lead(evidence.logits) <= limits[name] * centred_size(evidence.logits))
        for name, logits in again.items()
    }
    values["predictions_changed"] = max(int(each.sum()) for each in changed.values())
    limits["predictions_changed"] = 0
    state = judged(values, limits)
    message = (
        f"logits differ by up to {max(values[name] for name in again):.2g} of an example's largest; "
        f"{values['predictions_changed']} of {n} predictions change by more than rounding"
    )
    if state == "failed":
        message += ". A model that draws random numbers needs attacks that average over them (eot)"
    return state, values, limits, message


def _change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Per example (N,), the largest change of its logits less their mean, relative to the largest of these."""
    difference = (after - after.mean(1, keepdim=True)) - (before - before.mean(1, keepdim=True))
    return difference.abs().amax(1) / centred_size(before)


@check("fresh-judge")
def fresh_judge(evidence: Evidence) -> Finding:
    """A copy of the model that has seen no query classifies the attacked images as the model does.

    It judges every attack's images in another order and in other batches, some of them alone. A model that remembers
    queries, or is none without its neighbours in the batch, answers in another way.
    """
    judge = evidence.judge
    if judge is None:
        return not_applicable("no copy of the model can be made")
    worst_case_correct(evidence)
    if judge.failure:
        # A model that answers here must answer there as well.
        raise MoatError(judge.failure)
    differing = sum(judge.differing.values())
    values, limits = {"differing": differing, "judged": judge.judged}, {"differing": 0}
    worst = max(judge.differing, key=judge.differing.__getitem__, default=None)
    message = f"of {judge.judged} attacked images, {differing} get another answer from a copy that has seen nothing"
    message += f", most of them by {worst}" if differing else ""
    return judged(values, limits), values, limits, message


@check("finite-logits")
def finite_logits(evidence: Evidence) -> Finding:
    """Logits are finite, and their margins small enough for the softmax, and so the gradient, not to saturate."""
    nonfinite = float((~torch.isfinite(evidence.logits)).any(1).float().mean())
    saturated = float((lead(evidence.logits) > SATURATED_MARGIN).float().mean())
    values = {"nonfinite": nonfinite, "saturated": saturated}
    limits = {"nonfinite": 0.0, "saturated": upper_limit(len(evidence.x), MAX_SATURATED)}
    message = (
        f"{nonfinite:.1%} of the examples have logits that are not finite, "
        f"{saturated:.1%} a margin above {SATURATED_MARGIN:g}"
    )
    return judged(values, limits, n=len(evidence.x)), values, limits, message
