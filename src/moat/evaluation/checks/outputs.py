"""Are the model's outputs fit to be attacked: deterministic, finite, and not saturated?"""

import torch

from moat.data.seeding import generator
from moat.evaluation.checks.chance import upper_limit
from moat.evaluation.checks.registry import Finding, check, within
from moat.evaluation.evidence import Evidence
from moat.models.outputs import predicted_class

# Relative to the largest logit. Other batch sizes may use other convolution kernels, which round differently.
REPEAT_TOLERANCE = 1e-4
REGROUP_TOLERANCE = 5e-3
# In float32 the gradient of the cross-entropy starts to underflow at a margin of about 90.
SATURATED_MARGIN = 50.0
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
    scale = evidence.logits.abs().max().clamp(min=1e-12)
    values = {name: float((logits - evidence.logits).abs().max() / scale) for name, logits in again.items()}
    limits = {name: REPEAT_TOLERANCE if name == "repeated" else REGROUP_TOLERANCE for name in values}
    flips = max(int((predicted_class(logits) != predicted_class(evidence.logits)).sum()) for logits in again.values())
    passed = within(values, limits)
    message = f"logits differ by up to {max(values.values()):.2g} of the largest; {flips} of {n} predictions change"
    if not passed:
        message += ". A model that draws random numbers needs attacks that average over them (eot)"
    return passed, values, limits, message


@check("finite-logits")
def finite_logits(evidence: Evidence) -> Finding:
    """Logits are finite, and their margins small enough for the softmax, and so the gradient, not to saturate."""
    top = evidence.logits.topk(2, 1).values
    nonfinite = float((~torch.isfinite(evidence.logits)).any(1).float().mean())
    saturated = float((top[:, 0] - top[:, 1] > SATURATED_MARGIN).float().mean())
    values = {"nonfinite": nonfinite, "saturated": saturated}
    limits = {"nonfinite": 0.0, "saturated": upper_limit(len(evidence.x), MAX_SATURATED)}
    message = (
        f"{nonfinite:.1%} of the examples have logits that are not finite, "
        f"{saturated:.1%} a margin above {SATURATED_MARGIN:g}"
    )
    return within(values, limits), values, limits, message
