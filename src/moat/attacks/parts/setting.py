"""Named attack settings made callable."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch

from moat.attacks.parts.arguments import Parameters, check_parameters
from moat.attacks.parts.cascade import Stage
from moat.attacks.parts.spaces import PIXELS, Space
from moat.attacks.parts.steps import Randomness
from moat.attacks.parts.views import DETACHED, STRAIGHT, view, views_of
from moat.base.errors import ConfigError, unknown_name
from moat.base.numbers import parse_number

# Keys of a setting that say what is attacked, not how: those of every family.
COMMON: Parameters = {
    "view": {"type": "string"},
    "transfer_from": {"enum": ["seed", "arch"]},
    "requires": {"enum": ["router", "experts"]},
    "limit": {"type": ["count", "null"]},
    "protocol": {"type": "string"},
}


@dataclass(frozen=True)
class Attack:
    """An attack with its parameters, ready to call: ``attack(model, x, y, generator=None) -> x_adv``.

    Wrap any callable of that signature in it to evaluate it like a built-in attack.

    Attributes:
        eps: radius of the L-infinity ball in pixel units that results are projected to; None for no ball.
        steps: gradient steps of one restart, 0 without any.
        takes_generator: whether ``function`` has the keyword ``generator``.
        parameters: what the setting comes down to, defaults included, for the record.
        stages: of an attack that is several in turn: model -> {name: attack of one}; each gets what is left.
        review: called with {stage: examples misclassified by it} and the number of examples, after all stages.
        view: name of the view (:mod:`moat.attacks.parts.views`) that is attacked instead of the model.
        transfer_from: name of another model that is attacked instead; ``source`` is that model.
        requires: "router" or "experts": what a model must have for this attack to make sense.
        protocol: how it is measured: "correct", or a replica of :mod:`moat.evaluation.protocols`.
        limit: attack only so many examples, the first ones; None for all.
        batch_size: examples attacked at once, where random numbers depend on it; None where they do not.
    """

    function: Callable[..., torch.Tensor]
    eps: float | None
    steps: int
    takes_generator: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stages: Callable[[torch.nn.Module], Mapping[str, Stage]] | None = None
    review: Callable[[Mapping[str, int], int], None] | None = None
    view: str | None = None
    transfer_from: str | None = None
    source: torch.nn.Module | None = None
    requires: str | None = None
    protocol: str = "correct"
    limit: int | None = None
    batch_size: int | None = None

    def __call__(
        self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, generator: Randomness = None
    ) -> torch.Tensor:
        target = self.target(model)
        if self.takes_generator:
            return self.function(target, x, y, generator=generator)
        return self.function(target, x, y)

    def target(self, model: torch.nn.Module) -> torch.nn.Module:
        """What the attack sees: the model, a view of it, or the model that examples are transferred from."""
        if self.transfer_from is not None:
            if self.source is None:
                raise ConfigError(f"no model to transfer from is given for {self.transfer_from!r}")
            return self.source
        return model if self.view is None else view(model, self.view)

    def in_space(self, space: Space) -> "Attack":
        """The same attack in a space: distances are in its units then. Clean images are the same in every space.

        Raises:
            ConfigError: the attack works in pixels only.
        """
        if space is PIXELS or self.parameters.get("attack") == "none":
            return self
        if "space" not in inspect.signature(self.function).parameters:
            raise ConfigError(
                f"the attack {self.parameters.get('attack')!r} works in pixels only, not in another space"
            )
        return replace(self, function=functools.partial(self.function, space=space))

    def not_applicable_reason(self, model: torch.nn.Module) -> str | None:
        """Why this attack does not apply to ``model``; None where it does."""
        if self.transfer_from is not None and self.source is None:
            return f"no model {self.transfer_from!r} to transfer from"
        if self.requires == "router" and not hasattr(model, "route_logits"):
            return "the model has no router"
        if self.requires == "experts" and len(views_of(model)) == 1:
            return "the model has no experts and no router that are known"
        if self.view is not None and self.view not in views_of(model):
            return f"the model has no view {self.view!r}"
        return None


def both_gradients(attack: Attack, model: torch.nn.Module) -> dict[str, Attack]:
    """``attack`` under the name of the gradient it follows and, where ``model`` offers it, its twin with fixed routes.

    A router can waste an attack's steps on itself, so the robust accuracy of a net with a router is the per-example
    worst of the two. A setting with a view of its own, and one that attacks nothing, has no twin.
    """
    found = {attack.view or STRAIGHT: attack}
    if attack.view is None and attack.steps and attack.source is None and DETACHED in views_of(model):
        found[DETACHED] = replace(attack, view=DETACHED, parameters={**attack.parameters, "view": DETACHED})
    return found


def bind(family: str, module: ModuleType, setting: Mapping[str, Any], where: str) -> Attack:
    """The attack of a family's module with the parameters of a setting; ``where`` begins the messages.

    Raises:
        ConfigError: unknown or missing parameter, or a value that is not allowed.
    """
    try:
        common = {key: value for key, value in setting.items() if key in COMMON}
        check_parameters(COMMON, **common)
        if "view" in common and "transfer_from" in common:
            raise ConfigError("view and transfer_from are both given; another model is attacked as it is")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    function = getattr(module, family)
    signature = inspect.signature(function).parameters
    given = {key: value for key, value in setting.items() if key != "attack" and key not in common}
    parameters = _parameters(module.PARAMETERS, signature, given, f"{where} ({family})")
    stages = getattr(module, "stages", None)
    moves = family != "none"
    return Attack(
        parameters={"attack": family, **common, **parameters},
        function=functools.partial(function, **parameters),
        eps=parameters.get("eps", None if moves else 0.0),
        steps=parameters.get("steps", parameters.get("n_iter", int(moves))),
        takes_generator="generator" in signature,
        stages=None if stages is None else functools.partial(stages, **parameters),
        review=getattr(module, "review", None),
        batch_size=parameters.get("batch_size"),
        **common,
    )


def _parameters(
    declared: Parameters, signature: Mapping[str, inspect.Parameter], given: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """All parameters of a family in the order of its declaration: numbers parsed, defaults filled in, checked."""
    for key in given:
        if key not in declared:
            raise ConfigError(f"{where}: " + unknown_name(key, declared, what="parameter"))
    parameters = {}
    for key, allowed in declared.items():
        if key not in given:
            if signature[key].default is inspect.Parameter.empty:
                raise ConfigError(f"{where}: the parameter {key!r} is missing")
            parameters[key] = signature[key].default
        elif allowed.get("type") in ("distance", "number"):
            parameters[key] = parse_number(given[key], where=f"{where}: {key}")
        else:
            parameters[key] = given[key]
    try:
        check_parameters(declared, **{key: parameters[key] for key in given})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return parameters
