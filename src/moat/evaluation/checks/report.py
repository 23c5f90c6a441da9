"""All checks on one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moat.attacks.parts.checks import check_budget, check_iterations
from moat.attacks.parts.steps import frozen
from moat.base.errors import ConfigError, DataError, MoatError
from moat.evaluation.checks import registry
from moat.evaluation.checks.registry import CheckResult
from moat.evaluation.checks.stages import standing
from moat.evaluation.evidence import Budget, Evidence, Origin
from moat.evaluation.runner import evaluate
from moat.evaluation.statistics import wilson


@dataclass(frozen=True)
class CheckReport:
    """All checks on one model.

    Attributes:
        worst_case_accuracy: fraction of the examples that survive every attack within eps; None if none could run.
        n: number of examples.
    """

    checks: tuple[CheckResult, ...]
    worst_case_accuracy: float | None
    worst_case_interval: tuple[float, float] | None
    eps: float
    n: int
    budget: Budget

    @property
    def failed(self) -> list[str]:
        return [result.check for result in self.checks if not result.passed]

    @property
    def not_applicable(self) -> list[str]:
        return [result.check for result in self.checks if result.state == "not-applicable"]

    @property
    def passed(self) -> bool:
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """JSON content: passed, failed, not_applicable, worst_case_accuracy, its interval, eps, n, budget, checks."""
        return {
            "passed": self.passed,
            "failed": self.failed,
            "not_applicable": self.not_applicable,
            "worst_case_accuracy": self.worst_case_accuracy,
            "worst_case_interval": list(self.worst_case_interval) if self.worst_case_interval else None,
            "eps": self.eps,
            "n": self.n,
            "budget": vars(self.budget),
            "checks": [result.to_dict() for result in self.checks],
        }


def verify(
    model: nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    *,
    eps: float = 8 / 255,
    batch_size: int = 250,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    origin: Origin | None = None,
    transfer_from: nn.Module | None = None,
) -> CheckReport:
    """Run all checks on a model and the examples (x, y), as :func:`moat.evaluation.evaluate` takes them.

    Args:
        eps: the L-infinity radius in which the model is said to be robust, in pixel units.
        settings: attacks by which somebody has measured this model: they are checked for being what they say, and
            within ``eps`` they count in the worst case.
        budget: what may be spent on each example; default: ``Budget()``.
        origin: what is known about the model's training and its data; nothing if not given.
        transfer_from: a model whose adversarial examples are tried on this one.

    Raises:
        ConfigError, DataError: arguments that :func:`moat.evaluation.evaluate` would refuse.
    """
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    budget = budget or Budget()
    check_budget(eps=eps)
    check_iterations(steps=budget.steps, queries=budget.queries)
    evidence = Evidence(
        model, x, y, eps, batch_size, seed, dict(settings or {}), budget, origin or Origin(), transfer_from
    )
    _refuse_wrong_arguments(evidence)
    with frozen(model):
        results = tuple(registry.run(name, evidence) for name in registry.names())
        worst, interval = _worst_case(evidence)
    return CheckReport(results, worst, interval, eps, len(x), budget)


def _refuse_wrong_arguments(evidence: Evidence) -> None:
    """Wrong arguments are refused here, where they cannot be taken for findings about the model."""
    clean = {"clean": evidence.settings["clean"]}
    try:
        evaluate(evidence.model, evidence.x, evidence.y, clean, batch_size=evidence.batch_size)
    except (ConfigError, DataError):
        raise
    except MoatError:
        # The model's own fault (router scores that are not finite): for the checks to say.
        return


def _worst_case(evidence: Evidence) -> tuple[float | None, tuple[float, float] | None]:
    try:
        correct, n = standing(evidence), len(evidence.x)
    except MoatError:
        return None, None
    return correct / n, wilson(correct, n)
