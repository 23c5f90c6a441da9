"""Attack after attack on what the ones before have left standing, so that each stage shows what it adds.

The order is from plain to particular: what the per-example worst case consists of is the last stage's survivors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from moat.attacks import pgd
from moat.attacks.suites import Attack
from moat.evaluation.evidence import Evidence
from moat.moe.detached import detached_router


@dataclass(frozen=True)
class Stage:
    """What the attacks of one stage did to the examples (positions) that the stages before had left.

    Every attack was tried on all of ``before``.
    """

    before: np.ndarray
    broken: Mapping[str, np.ndarray]

    @property
    def after(self) -> np.ndarray:
        return np.setdiff1d(self.before, self.broken_by(*self.broken))

    def broken_by(self, *attacks: str) -> np.ndarray:
        """The union of what the named attacks have broken."""
        return np.unique(np.concatenate([self.before[:0], *(self.broken[name] for name in attacks)]))


# How the names of attacks end that cut the gradient through the router.
DETACHED = ", router detached"

Attacks = Mapping[str, Mapping[str, Any] | Attack]


def has_router(model: nn.Module) -> bool:
    """Whether the model has a router as a module of its own, whose scores can be cut off from the gradient."""
    return isinstance(getattr(model, "router", None), nn.Module)


def is_mixture(model: nn.Module) -> bool:
    """Whether an image goes through experts: chosen, weighted or asked one by one."""
    return hasattr(model, "route_logits") or hasattr(model, "experts")


def _losses(evidence: Evidence) -> Attacks:
    """The margin instead of the cross-entropy; both without the gradient through the router, where there is one."""
    return {name: attack for name, attack in _white_box(evidence, 1).items() if name != "pgd"}


def _doubled(evidence: Evidence) -> Attacks:
    """Both losses with twice the steps, and from another random start; without the router's gradient, if it has one."""
    longer = {f"{name}, steps doubled": attack for name, attack in _sharpest(evidence, 2).items()}
    # The name decides the random numbers.
    again = {f"{name}, another start": attack for name, attack in _sharpest(evidence, 1).items()}
    return longer | again


def _sharpest(evidence: Evidence, factor: int) -> Attacks:
    """A straight-through gradient is left out: what it has to give, the attacks on the router try again."""
    attacks = _white_box(evidence, factor)
    detached = {name: attack for name, attack in attacks.items() if name.endswith(DETACHED)}
    return detached or attacks


def _white_box(evidence: Evidence, factor: int) -> dict[str, Mapping[str, Any] | Attack]:
    steps = factor * evidence.budget.steps
    attacks: dict[str, Mapping[str, Any] | Attack] = {}
    for name, loss in (("pgd", "ce"), ("margin", "margin")):
        parameters = {"eps": evidence.eps, "step_size": evidence.eps / 4, "steps": steps, "loss": loss}
        attacks[name] = {"attack": "pgd", **parameters}
        if has_router(evidence.model):
            attacks[name + DETACHED] = Attack(_on_detached(parameters), evidence.eps, steps)
    return attacks


def _on_detached(parameters: Mapping[str, Any]) -> Callable:
    def attack(model, x, y, generator=None):
        return pgd(detached_router(model), x, y, **parameters, generator=generator)

    return attack


def _router(evidence: Evidence) -> Attacks:
    """The attacks that know what a mixture is made of."""
    if not is_mixture(evidence.model):
        return {}
    parameters = {"eps": evidence.eps, "step_size": evidence.eps / 4, "steps": evidence.budget.steps}
    return {"moe_adaptive": {"attack": "moe_adaptive", **parameters}}


def _black_box(evidence: Evidence) -> Attacks:
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
    return attacks


_STAGES: Mapping[str, Callable[[Evidence], Attacks]] = {
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
        attacks = _STAGES[name](evidence)
        broken = {each: evidence.broken(each, attack, before) for each, attack in attacks.items()}
        evidence.stages[name] = Stage(before, broken)
    return evidence.stages[name]


def standing(evidence: Evidence) -> int:
    """How many examples survive everything: the per-example worst case over all attacks within eps."""
    return len(stage(evidence, list(_STAGES)[-1]).after)
