"""What a check is: a function registered by name, and what it found.

It takes the :class:`~moat.evaluation.evidence.Evidence` on a model and returns a :data:`Finding`:
(passed, values, limits, message), with passed None where the check does not apply to this model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moat.base.errors import MoatError
from moat.evaluation.evidence import Evidence

State = Literal["passed", "failed", "not-applicable"]
Finding = tuple[bool | None, Mapping[str, float], Mapping[str, float], str]
Check = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class CheckResult:
    """What one check found: the values it measured, the limits some of them must keep, a sentence for people."""

    check: str
    state: State
    value: dict[str, float | None]
    limit: dict[str, float]
    message: str

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the model: True also where the check does not apply."""
        return self.state != "failed"

    def to_dict(self) -> dict[str, Any]:
        """As JSON content: check, state, passed, value, limit, message."""
        return {"check": self.check, "state": self.state, "passed": self.passed, **_numbers(self)}


def _numbers(result: CheckResult) -> dict[str, Any]:
    return {"value": result.value, "limit": result.limit, "message": result.message}


_CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Register a function as the check ``name``."""

    def register(function: Check) -> Check:
        assert name not in _CHECKS, name
        _CHECKS[name] = function
        return function

    return register


def names() -> list[str]:
    """The checks, in the order in which they run."""
    return list(_CHECKS)


def run(name: str, evidence: Evidence) -> CheckResult:
    """Ask one check. What the model makes impossible to measure (gradients that are NaN) has failed, too."""
    try:
        passed, value, limit, message = _CHECKS[name](evidence)
    except MoatError as error:
        passed, value, limit, message = False, {}, {}, f"could not be measured: {error}"
    state: State = "not-applicable" if passed is None else "passed" if passed else "failed"
    finite = {key: float(number) if math.isfinite(number) else None for key, number in value.items()}
    return CheckResult(name, state, finite, dict(limit), message)


def not_applicable(reason: str) -> Finding:
    return None, {}, {}, f"not applicable: {reason}"


def keeps(values: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether every limited value is at most its limit; NaN is not."""
    return all(values[key] <= limit for key, limit in limits.items())
