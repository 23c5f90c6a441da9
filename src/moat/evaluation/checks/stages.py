"""Attacks in stages, each on the examples that the stages before left correct, so that each shows what it adds.

The stages go from the general to the particular. The examples that the last one leaves correct are the per-example
worst case over all attacks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from moat.attacks import pgd
from moat.attacks.parts.setting import Attack
from moat.evaluation.checks.chance import upper_limit
from moat.evaluation.evidence import DETACHED, Evidence, has_router, on_detached


@dataclass(frozen=True)
class Stage:
    """The result of one stage. Examples are given by their positions.

    Attributes:
        before: the examples that are still correct when the stage begins.
        misclassified: attack -> the examples that it made the model misclassify. Every attack runs on all of
            ``before``, except that a doubling runs on what the doublings before left correct.
        steps: of the last attacks.
    """

    before: np.ndarray
    misclassified: Mapping[str, np.ndarray]
    steps: int

    @property
    def after(self) -> np.ndarray:
        return np.setdiff1d(self.before, self.misclassified_by(*self.misclassified))

    def misclassified_by(self, *attacks: str) -> np.ndarray:
        """The union over the named attacks."""
        return np.unique(np.concatenate([self.before[:0], *(self.misclassified[name] for name in attacks)]))


# The suffix of attacks that repeat the last doubling from another random start.
ANOTHER_START = ", another start"
# Twice the steps may change the accuracy by half a point.
MAX_CHANGE = 0.005
# Steps are doubled up to this multiple of the budget's.
LARGEST_FACTOR = 8

Attacks = Mapping[str, Mapping[str, Any] | Attack]


def is_mixture(model: nn.Module) -> bool:
    """Whether the model has experts: selected, weighted, or asked one by one."""
    return hasattr(model, "route_logits") or hasattr(model, "experts")


def _losses(evidence: Evidence, before: np.ndarray) -> Stage:
    """PGD on the margin instead of the cross-entropy; if there is a router, also without its gradient."""
    others = {name: attack for name, attack in _white_box(evidence, 1).items() if name not in evidence.at_eps}
    return _attacked(evidence, others, before)


def _doubled(evidence: Evidence, before: np.ndarray) -> Stage:
    """Double the steps until that changes little; then repeat the last doubling from another random start."""
    found, left, factor, enough = {}, before, 1, upper_limit(len(evidence.x), MAX_CHANGE)
    while factor < LARGEST_FACTOR:
        factor *= 2
        longer = _attacked(evidence, _sharpest(evidence, factor, f", {factor} times the steps"), left)
        found |= longer.misclassified
        left = longer.after
        if (len(longer.before) - len(left)) / len(evidence.x) <= enough:
            break
    # The random numbers derive from the name.
    found |= _attacked(evidence, _sharpest(evidence, factor, ANOTHER_START), left).misclassified
    return Stage(before, found, factor * evidence.budget.steps)


def _sharpest(evidence: Evidence, factor: int, suffix: str) -> Attacks:
    """PGD on both losses. With a router only without its gradient: the stage ``router`` attacks that as well."""
    attacks = _white_box(evidence, factor)
    detached = {name: attack for name, attack in attacks.items() if name.endswith(DETACHED)}
    return {name + suffix: attack for name, attack in (detached or attacks).items()}


def _white_box(evidence: Evidence, factor: int) -> dict[str, Mapping[str, Any] | Attack]:
    steps = factor * evidence.budget.steps
    attacks: dict[str, Mapping[str, Any] | Attack] = {}
    for name, loss in (("pgd", "ce"), ("margin", "margin")):
        parameters = {"eps": evidence.eps, "step_size": evidence.eps / 4, "steps": steps, "loss": loss}
        attacks[name] = {"attack": "pgd", **parameters}
        if has_router(evidence.model):
            attacks[name + DETACHED] = on_detached(parameters)
    return attacks


def _router(evidence: Evidence, before: np.ndarray) -> Stage:
    """Attacks on the structure of a mixture."""
    if not is_mixture(evidence.model):
        return _attacked(evidence, {}, before)
    parameters = {"eps": evidence.eps, "step_size": evidence.eps / 4, "steps": evidence.budget.steps}
    return _attacked(evidence, {"moe_adaptive": {"attack": "moe_adaptive", **parameters}}, before)


def _black_box(evidence: Evidence, before: np.ndarray) -> Stage:
    """Attacks without this model's gradients: queries, and examples transferred from another model."""
    attacks: dict[str, Mapping[str, Any] | Attack] = {
        "square": {"attack": "square", "eps": evidence.eps, "n_queries": evidence.budget.queries}
    }
    source = evidence.transfer_from
    if source is not None:
        parameters = {"eps": evidence.eps, "step_size": evidence.eps / 4, "steps": evidence.budget.steps}
        attacks["transfer"] = Attack(
            lambda model, x, y, generator=None: pgd(source, x, y, **parameters, generator=generator),
            evidence.eps,
            evidence.budget.steps,
        )
    return _attacked(evidence, attacks, before)


def _attacked(evidence: Evidence, attacks: Attacks, before: np.ndarray) -> Stage:
    found = {name: evidence.misclassified(name, attack, before) for name, attack in attacks.items()}
    return Stage(before, found, evidence.budget.steps)


_STAGES: Mapping[str, Callable[[Evidence, np.ndarray], Stage]] = {
    "losses": _losses,
    "doubled": _doubled,
    "router": _router,
    "black box": _black_box,
}


def stage(evidence: Evidence, name: str) -> Stage:
    """The stage ``name`` ("losses", "doubled", "router" or "black box"), measured on first use."""
    if name not in evidence.stages:
        earlier = list(_STAGES)[: list(_STAGES).index(name)]
        before = stage(evidence, earlier[-1]).after if earlier else evidence.survivors(*evidence.within_eps)
        evidence.stages[name] = _STAGES[name](evidence, before)
    return evidence.stages[name]


def worst_case_correct(evidence: Evidence) -> int:
    """The number of examples that are correct under every attack within eps."""
    return len(stage(evidence, list(_STAGES)[-1]).after)
