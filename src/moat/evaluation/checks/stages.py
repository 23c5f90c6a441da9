"""Attack after attack on what the ones before have left standing, so that each stage shows what it adds.

The order is from plain to particular: what the per-example worst case consists of is the last stage's survivors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from moat.attacks import pgd
from moat.attacks.parts.setting import Attack
from moat.evaluation.checks.chance import most_allowed
from moat.evaluation.evidence import DETACHED, Evidence, has_router, on_detached


@dataclass(frozen=True)
class Stage:
    """What the attacks of one stage did to the examples (positions) that the stages before had left.

    Attributes:
        before: positions of those examples.
        broken: what each attack has broken of them, by its name; all were tried on all of ``before``, but for those
            of a doubling, which were tried on what the doublings before had left.
        steps: of the last attacks.
    """

    before: np.ndarray
    broken: Mapping[str, np.ndarray]
    steps: int

    @property
    def after(self) -> np.ndarray:
        return np.setdiff1d(self.before, self.broken_by(*self.broken))

    def broken_by(self, *attacks: str) -> np.ndarray:
        """The union of what the named attacks have broken."""
        return np.unique(np.concatenate([self.before[:0], *(self.broken[name] for name in attacks)]))


# How the names of attacks end that start elsewhere.
ANOTHER_START = ", another start"
# Twice the work may move the accuracy by half a point.
MOST_MOVED = 0.005
# Attacks are not doubled beyond so many times the budget's steps.
LARGEST_FACTOR = 8

Attacks = Mapping[str, Mapping[str, Any] | Attack]


def is_mixture(model: nn.Module) -> bool:
    """Whether an image goes through experts: chosen, weighted or asked one by one."""
    return hasattr(model, "route_logits") or hasattr(model, "experts")


def _losses(evidence: Evidence, before: np.ndarray) -> Stage:
    """The margin instead of the cross-entropy; also without the gradient through the router, where there is one."""
    others = {name: attack for name, attack in _white_box(evidence, 1).items() if name not in evidence.at_eps}
    return _each(evidence, others, before)


def _doubled(evidence: Evidence, before: np.ndarray) -> Stage:
    """Twice the steps, and twice again while that breaks more than it may; then as many from another random start."""
    broken, left, factor, enough = {}, before, 1, most_allowed(len(evidence.x), MOST_MOVED)
    while factor < LARGEST_FACTOR:
        factor *= 2
        longer = _each(evidence, _sharpest(evidence, factor, f", {factor} times the steps"), left)
        broken |= longer.broken
        left = longer.after
        if (len(longer.before) - len(left)) / len(evidence.x) <= enough:
            break
    # The name decides the random numbers.
    broken |= _each(evidence, _sharpest(evidence, factor, ANOTHER_START), left).broken
    return Stage(before, broken, factor * evidence.budget.steps)


def _sharpest(evidence: Evidence, factor: int, ending: str) -> Attacks:
    """A straight-through gradient is left out: what it has to give, the attacks on the router try again."""
    attacks = _white_box(evidence, factor)
    detached = {name: attack for name, attack in attacks.items() if name.endswith(DETACHED)}
    return {name + ending: attack for name, attack in (detached or attacks).items()}


def _each(evidence: Evidence, attacks: Attacks, before: np.ndarray) -> Stage:
    broken = {name: evidence.broken(name, attack, before) for name, attack in attacks.items()}
    return Stage(before, broken, evidence.budget.steps)


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
    """The attacks that know what a mixture is made of."""
    if not is_mixture(evidence.model):
        return _each(evidence, {}, before)
    parameters = {"eps": evidence.eps, "step_size": evidence.eps / 4, "steps": evidence.budget.steps}
    return _each(evidence, {"moe_adaptive": {"attack": "moe_adaptive", **parameters}}, before)


def _black_box(evidence: Evidence, before: np.ndarray) -> Stage:
    """Without this model's gradients: queries, and examples made on another model."""
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
    return _each(evidence, attacks, before)


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


def standing(evidence: Evidence) -> int:
    """How many examples survive everything: the per-example worst case over all attacks within eps."""
    return len(stage(evidence, list(_STAGES)[-1]).after)
