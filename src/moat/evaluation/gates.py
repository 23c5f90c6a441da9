"""Gates: automatic checks that a robust accuracy can be trusted. A gate is one function with ``@gate(name)``.

It takes the :class:`Evidence` on a model and returns (passed, values, limits, message). What the gates look for
are the known ways in which a net only seems robust: masked, vanishing or randomised gradients (Athalye et al.,
arXiv 1802.00420; Carlini et al., arXiv 1902.06705, section 5).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moat.attacks.checks import check_budget
from moat.attacks.objectives import cross_entropy
from moat.attacks.steps import frozen, input_gradient, random_start_point
from moat.data.seeding import generator
from moat.errors import MoatError
from moat.evaluation.evidence import STEPS, Evidence
from moat.evaluation.runner import evaluate
from moat.evaluation.statistics import accuracy, wilson

LINF_TOLERANCE = 1e-6
# Two ways of adding up the same fraction.
ROUNDING = 1e-9
# Relative to the largest logit. Other batch sizes may use other convolution kernels, and round differently.
REPEAT_TOLERANCE = 1e-4
REGROUP_TOLERANCE = 5e-3
# In float32 the cross-entropy's gradient starts to underflow where one logit leads by about 90.
SATURATED_MARGIN = 50.0
MOST_SATURATED = 0.05
MOST_ZERO_GRADIENTS = 0.01
Finding = tuple[bool, dict[str, float | None], dict[str, float], str]


@dataclass(frozen=True)
class GateResult:
    """What one gate found: the values it measured, the limits they must keep, and a sentence for people."""

    gate: str
    passed: bool
    value: dict[str, float | None]
    limit: dict[str, float]
    message: str


@dataclass(frozen=True)
class GateReport:
    """All gates on one model.

    Attributes:
        worst_case_accuracy: fraction of the examples that survive every attack within eps; None if none could run.
        n: number of examples.
    """

    gates: tuple[GateResult, ...]
    worst_case_accuracy: float | None
    worst_case_interval: tuple[float, float] | None
    eps: float
    n: int

    @property
    def failed(self) -> list[str]:
        return [result.gate for result in self.gates if not result.passed]

    @property
    def passed(self) -> bool:
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """As JSON content: passed, failed, worst_case_accuracy, worst_case_interval, eps, n, gates."""
        return {
            "passed": self.passed,
            "failed": self.failed,
            "worst_case_accuracy": self.worst_case_accuracy,
            "worst_case_interval": list(self.worst_case_interval) if self.worst_case_interval else None,
            "eps": self.eps,
            "n": self.n,
            "gates": [vars(result) for result in self.gates],
        }


_GATES: dict[str, Callable[[Evidence], Finding]] = {}


def gate(name: str) -> Callable[[Callable[[Evidence], Finding]], Callable[[Evidence], Finding]]:
    """Register a function as the gate ``name``."""

    def register(function: Callable[[Evidence], Finding]) -> Callable[[Evidence], Finding]:
        assert name not in _GATES, name
        _GATES[name] = function
        return function

    return register


def names() -> list[str]:
    """The gates, in the order in which they run."""
    return list(_GATES)


def verify(
    model: nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    *,
    eps: float = 8 / 255,
    batch_size: int = 250,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> GateReport:
    """Run all gates on a model and the examples (x, y), as :func:`moat.evaluation.evaluate` takes them.

    Args:
        eps: the L-infinity radius in which the model is said to be robust, in pixel units.
        settings: further attacks within ``eps`` that the threat-model gate and the worst case include.

    Raises:
        ConfigError, DataError: arguments that :func:`moat.evaluation.evaluate` would refuse.
    """
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    evidence = Evidence(model, x, y, eps, batch_size, seed, dict(settings or {}))
    # Wrong arguments are refused here, where they cannot be taken for findings about the model.
    check_budget(eps=eps)
    evaluate(model, x, y, {"clean": evidence.settings["clean"]}, batch_size=batch_size)
    with frozen(model):
        results = tuple(_run(name, evidence) for name in _GATES)
        worst, interval = _worst_case(evidence)
    return GateReport(results, worst, interval, eps, len(x))


def _run(name: str, evidence: Evidence) -> GateResult:
    """A gate whose measurement the model makes impossible (gradients that are NaN) has failed, too."""
    try:
        passed, value, limit, message = _GATES[name](evidence)
    except MoatError as error:
        passed, value, limit, message = False, {}, {}, f"could not be measured: {error}"
    value = {key: float(number) if math.isfinite(number) else None for key, number in value.items()}
    return GateResult(name, bool(passed), value, limit, message)


def _worst_case(evidence: Evidence) -> tuple[float | None, tuple[float, float] | None]:
    try:
        correct, n = accuracy(evidence.frame, evidence.within_eps)
    except MoatError:
        return None, None
    return correct / n, wilson(correct, n)


# -- the gates ---------------------------------------------------------------


@gate("threat-model")
def threat_model(evidence: Evidence) -> Finding:
    """The attacks' own results, before the runner's projection, are images in the ball; clean accuracy is right."""
    excess, outside = 0.0, 0.0
    x, y, indices = next(evidence.batches())
    for name, attack in evidence.settings.items():
        draws = [generator(evidence.seed, 0, f"evaluate {name}", batch=i) for i in indices]
        raw = attack(evidence.model, x.clone(), y.clone(), draws).float()
        excess = max(excess, _over((raw - x).abs().amax() - (math.inf if attack.eps is None else attack.eps)))
        outside = max(outside, _over((raw - 0.5).abs().amax() - 0.5))
    recomputed = (evidence.logits.argmax(1) == evidence.y.cpu()).double().mean().item()
    difference = abs(recomputed - evidence.accuracy("clean"))
    values = {"over_eps": excess, "outside_pixels": outside, "clean_accuracy_difference": difference}
    limits = {"over_eps": LINF_TOLERANCE, "outside_pixels": LINF_TOLERANCE, "clean_accuracy_difference": ROUNDING}
    message = f"attacks exceed eps by {excess:.2g} and [0,1] by {outside:.2g}; clean accuracy {recomputed:.4f}"
    return all(values[key] <= limits[key] for key in values), values, limits, message


def _over(excess: torch.Tensor) -> float:
    """How far above 0; NaN counts as infinitely far."""
    return math.inf if torch.isnan(excess) else max(0.0, float(excess))


@gate("determinism")
def determinism(evidence: Evidence) -> Finding:
    """The same image gets the same logits: asked twice, in batches of other sizes, in another order."""
    n, batch = len(evidence.x), evidence.batch_size
    shuffled = torch.randperm(n, generator=generator(evidence.seed, 0, "determinism gate")).tolist()
    again = {
        "repeated": evidence.classify(range(n), batch),
        "other_batch_size": evidence.classify(range(n), max(1, min(n, batch) // 3)),
        "other_order": evidence.classify(shuffled, batch),
    }
    scale = evidence.logits.abs().max().clamp(min=1e-12)
    values = {name: float((logits - evidence.logits).abs().max() / scale) for name, logits in again.items()}
    limits = {name: REPEAT_TOLERANCE if name == "repeated" else REGROUP_TOLERANCE for name in values}
    flips = max(int((logits.argmax(1) != evidence.logits.argmax(1)).sum()) for logits in again.values())
    message = f"logits differ by up to {max(values.values()):.2g} of the largest; {flips} of {n} predictions change"
    # Written so that NaN fails.
    return all(values[name] <= limits[name] for name in values), values, limits, message


@gate("finite-logits")
def finite_logits(evidence: Evidence) -> Finding:
    """Logits are numbers, and not so far apart that the softmax, and with it the gradient, saturates."""
    top = evidence.logits.topk(2, 1).values
    nonfinite = float((~torch.isfinite(evidence.logits)).any(1).float().mean())
    saturated = float((top[:, 0] - top[:, 1] > SATURATED_MARGIN).float().mean())
    values = {"nonfinite": nonfinite, "saturated": saturated}
    limits = {"nonfinite": 0.0, "saturated": MOST_SATURATED}
    message = (
        f"{nonfinite:.1%} of the examples have logits that are not finite, "
        f"{saturated:.1%} a margin above {SATURATED_MARGIN:g}"
    )
    return nonfinite == 0 and saturated <= MOST_SATURATED, values, limits, message


@gate("gradient")
def gradient(evidence: Evidence) -> Finding:
    """The cross-entropy has a gradient at clean images and at random points of the ball, hardly ever zero or NaN."""
    useless = {"clean": 0, "random_start": 0}
    for x, y, indices in evidence.batches():
        draws = [generator(evidence.seed, 0, "gradient gate", batch=i) for i in indices]
        for place, kind in (("clean", False), ("random_start", "uniform")):
            point = random_start_point(x, evidence.eps, kind, draws)
            slope = input_gradient(evidence.model, point, cross_entropy(y)).flatten(1)
            useless[place] += int(((slope == 0).all(1) | slope.isnan().any(1)).sum())
    values = {place: count / len(evidence.x) for place, count in useless.items()}
    limits = dict.fromkeys(values, MOST_ZERO_GRADIENTS)
    message = f"the gradient is zero or NaN for {max(values.values()):.1%} of the examples"
    return max(values.values()) <= MOST_ZERO_GRADIENTS, values, limits, message


@gate("monotone-epsilon")
def monotone_epsilon(evidence: Evidence) -> Finding:
    """Accuracy does not rise with the radius, and falls to chance level at the largest."""
    by_radius = sorted((eps, evidence.accuracy(name)) for name, eps in evidence.sweep.items())
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


@gate("iterative-at-most-fgsm")
def iterative_at_most_fgsm(evidence: Evidence) -> Finding:
    """An iterative attack leaves no more accuracy than one step of the same radius."""
    iterative, single = evidence.accuracy("pgd"), evidence.accuracy("fgsm")
    values = {"excess": max(0.0, iterative - single)}
    message = f"accuracy {iterative:.4f} under PGD-{STEPS}, {single:.4f} under FGSM"
    return values["excess"] <= evidence.slack, values, {"excess": evidence.slack}, message
