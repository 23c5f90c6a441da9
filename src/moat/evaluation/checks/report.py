"""Run all checks on a model."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moat.attacks.parts.arguments import check_budget, check_iterations
from moat.attacks.parts.steps import frozen
from moat.base.errors import ConfigError, DataError, MoatError
from moat.evaluation.checks import registry
from moat.evaluation.checks.registry import CheckResult, State
from moat.evaluation.checks.stages import worst_case_correct
from moat.evaluation.evidence import Budget, Evidence, Origin
from moat.evaluation.fresh_judge import FreshJudge, fresh_copy
from moat.evaluation.runner import as_tensor, evaluate
from moat.evaluation.statistics import wilson
from moat.models.guard import guarded


@dataclass(frozen=True, repr=False)
class CheckReport:
    """The results of all checks on one model; prints as a table.

    Attributes:
        worst_case_accuracy: fraction of the examples that are correct under every attack within eps; None if no attack
            could run.
        worst_case_interval: its 95 % Wilson interval.
        eps: L-infinity radius in pixel units.
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
        return self._in_state("not-applicable")

    @property
    def undecided(self) -> list[str]:
        """The checks that cannot tell, for want of examples, of queries or of knowledge about the model."""
        return self._in_state("not-enough-examples", "not-enough-queries", "unknown")

    def _in_state(self, *states: State) -> list[str]:
        return [result.check for result in self.checks if result.state in states]

    @property
    def passed(self) -> bool:
        return not self.failed

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else f"failed: {', '.join(self.failed)}"
        return f"<CheckReport {verdict}; worst case {self._worst_case} at eps {self.eps:.4g}, n = {self.n}>"

    def __str__(self) -> str:
        width = max((len(result.check) for result in self.checks), default=0)
        shown = {"failed": "FAILED", "not-applicable": "n/a"}
        shown |= dict.fromkeys(("not-enough-examples", "not-enough-queries"), "too few")
        lines = [f"{shown.get(each.state, each.state):7} {each.check:{width}}  {each.message}" for each in self.checks]
        passed, left_out = len(self._in_state("passed")), len(self.not_applicable)
        summary = f"{passed} of {passed + len(self.failed)} checks passed; {left_out} not applicable"
        lines.append(summary + (f"; undecided: {', '.join(self.undecided)}" if self.undecided else ""))
        return "\n".join([*lines, f"worst case: {self._worst_case} at eps {self.eps:.4g}, n = {self.n}"])

    @property
    def _worst_case(self) -> str:
        if self.worst_case_accuracy is None or self.worst_case_interval is None:
            return "not measured"
        low, high = self.worst_case_interval
        return f"{self.worst_case_accuracy:.1%} [{low:.1%}, {high:.1%}]"

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
    fresh: Callable[[], nn.Module] | None = None,
) -> CheckReport:
    """Run all checks on a model and examples (x, y), given as to :func:`moat.evaluation.evaluate`.

    Args:
        eps: the L-infinity radius of the claimed robustness, in pixel units.
        settings: attacks by which the model's robustness was measured elsewhere. They are checked as well, and those
            within ``eps`` count in the worst case.
        budget: steps and queries per example; default: ``Budget()``.
        origin: what is known of the model's training and data; default: nothing.
        transfer_from: another model, whose adversarial examples are tried on this one.
        fresh: builds the model anew, weights included; what the attacks find is judged again by such a model. A deep
            copy, made before the first query, if not given. Either shares with ``model`` what classes and modules
            remember: ``moat verify`` has it built in another process.

    Raises:
        ConfigError, DataError: arguments that :func:`moat.evaluation.evaluate` would refuse.
    """
    model, x, y = guarded(model), as_tensor(x, "images"), as_tensor(y, "labels")
    budget = budget or Budget()
    check_budget(eps=eps)
    check_iterations(steps=budget.steps, queries=budget.queries)
    # Before the model's first query: it may remember them.
    unused = fresh_copy(model, fresh)
    judge = None if unused is None else FreshJudge(unused, seed)
    evidence = Evidence(
        model, x, y, eps, batch_size, seed, dict(settings or {}), budget, origin or Origin(), transfer_from, judge
    )
    try:
        # Refuse wrong arguments here, where they cannot be mistaken for a finding about the model.
        evaluate(model, x, y, {"clean": evidence.settings["clean"]}, batch_size=batch_size)
    except (ConfigError, DataError):
        raise
    except MoatError:
        pass  # The model's own fault, such as router scores that are not finite: a check will report it.
    accuracy, interval = None, None
    with frozen(model):
        results = tuple(registry.run(name, evidence) for name in registry.names())
        with contextlib.suppress(MoatError):
            correct = worst_case_correct(evidence)
            accuracy, interval = correct / len(x), wilson(correct, len(x))
    return CheckReport(results, accuracy, interval, eps, len(x), budget)
