"""The registry of checks, and the result of a check.

A check is a function that takes the :class:`~moat.evaluation.evidence.Evidence` on a model and returns a
:data:`Finding`: (state, values, limits, message). The first line of its docstring says what holds for a model that
passes.

States: ``passed``; ``failed``; ``not-applicable`` to this model; ``not-enough-examples``: nothing speaks against the
model, but on so few examples hardly anything could; ``not-enough-queries``: the same of an attack with so few;
``unknown``: what would have to be known about the model is not.
Only ``failed`` counts against the model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moat.base.errors import DataError, MoatError
from moat.evaluation.checks.chance import ENOUGH
from moat.evaluation.evidence import Evidence

State = Literal["passed", "failed", "not-applicable", "not-enough-examples", "not-enough-queries", "unknown"]
Finding = tuple[State, Mapping[str, float], Mapping[str, float], str]
Check = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check: the measured values, the upper limits of some of them, and a message."""

    check: str
    state: State
    value: dict[str, float | None]
    limit: dict[str, float]
    message: str

    @property
    def passed(self) -> bool:
        """Whether the check found nothing against the model; True also if it does not apply or cannot tell."""
        return self.state != "failed"

    def to_dict(self) -> dict[str, Any]:
        """As JSON content: check, state, passed, value, limit, message."""
        numbers = {"value": self.value, "limit": self.limit}
        return {"check": self.check, "state": self.state, "passed": self.passed, **numbers, "message": self.message}


_CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Register a function as the check ``name``."""

    def register(function: Check) -> Check:
        assert name not in _CHECKS, name
        _CHECKS[name] = function
        return function

    return register


def names() -> list[str]:
    """The names of the checks, in the order in which they run."""
    return list(_CHECKS)


def titles() -> dict[str, str]:
    """The checks and what a model that passes shows: the first line of each one's docstring."""
    return {name: (function.__doc__ or name).splitlines()[0] for name, function in _CHECKS.items()}


def run(name: str, evidence: Evidence) -> CheckResult:
    """Run one check, once. A measurement that the model makes impossible (by NaN gradients, say) is a failure.

    Raises:
        DataError: the model itself fails or returns no logits, which is no finding about its robustness.
    """
    if name not in evidence.found:
        try:
            state, value, limit, message = _CHECKS[name](evidence)
        except DataError:
            raise
        except MoatError as error:
            state, value, limit, message = "failed", {}, {}, f"could not be measured: {error}"
        finite = {key: float(number) if math.isfinite(number) else None for key, number in value.items()}
        evidence.found[name] = CheckResult(name, state, finite, dict(limit), message)
    return evidence.found[name]


def not_applicable(reason: str) -> Finding:
    """The finding of a check that does not apply to the model."""
    return "not-applicable", {}, {}, f"not applicable: {reason}"


def judged(values: Mapping[str, float], limits: Mapping[str, float], *, n: int | None = None) -> State:
    """Whether all values are within their limits. NaN never is.

    Args:
        n: the number of examples, where the limits allow for chance.
    """
    if not all(values[key] <= limit for key, limit in limits.items()):
        return "failed"
    return "not-enough-examples" if n is not None and n < ENOUGH else "passed"
