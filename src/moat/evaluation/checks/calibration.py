"""Do the checks give the known answers on a problem whose answer is known?"""

import functools

import torch

from moat.evaluation.checks import registry
from moat.evaluation.checks.known_models import EPS, EXAMPLES, Masked, known_problem, masked_net
from moat.evaluation.checks.registry import Finding, check, judged
from moat.evaluation.checks.stages import worst_case_correct
from moat.evaluation.evidence import Budget, Evidence
from moat.evaluation.runner import device_of

# The checks that are about attacks and models rather than their origin.
MUST_PASS = (
    "threat-model",
    "determinism",
    "finite-logits",
    "gradient",
    "gradient-agreement",
    "monotone-epsilon",
    "iterative-at-most-fgsm",
    "converged",
    "black-box",
)
# The checks that must notice a defence which only cuts the gradient.
MUST_FAIL = ("gradient", "black-box")


@check("calibration")
def calibration(evidence: Evidence) -> Finding:
    """The checks and attacks are right about a model of known robustness, and about the same with a masked gradient.

    The first must pass, with exactly half of the images robust; the second must fail for its gradient and for a
    black-box attack. So must a small net that is not robust: against a net, a black-box attack needs more queries.
    """
    accuracy, wrongly_failed, missed = _answers(device_of(evidence.model), evidence.budget)
    values = {"error": abs(accuracy - 0.5), "wrongly_failed": len(wrongly_failed), "missed": len(missed)}
    limits = {"error": 0.0, "wrongly_failed": 0, "missed": 0}
    message = f"known-good model: accuracy {accuracy:.4f}, true 0.5000"
    message += "".join(f"; it fails {name}" for name in wrongly_failed)
    message += "".join(f"; the masked {name}" for name in missed) or "; the masked models are found out"
    return judged(values, limits), values, limits, message


@functools.cache
def _answers(device: torch.device, budget: Budget) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """The good model's accuracy, the checks that it fails, and those that a masked model should fail but passes."""
    model, x, y = known_problem(device)
    good = Evidence(model, x, y, EPS, EXAMPLES, 0, budget=budget)
    masked = {
        "model": Evidence(Masked(model), x, y, EPS, EXAMPLES, 0, budget=budget),
        "net": masked_net(device, budget),
    }
    failed = tuple(name for name in MUST_PASS if not registry.run(name, good).passed)
    missed = tuple(
        f"{which} passes {name}"
        for which, evidence in masked.items()
        for name in MUST_FAIL
        if registry.run(name, evidence).passed
    )
    return worst_case_correct(good) / EXAMPLES, failed, missed
