"""Named attack settings made callable."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from moat.attacks.parts.stages import Stage
from moat.attacks.parts.steps import Randomness
from moat.base.errors import ConfigError
from moat.base.numbers import parse_number

_BATCH_ARGUMENTS = ("model", "x", "y", "generator")
# Keys of a setting that say what is attacked, not how; the runner reads them.
ABOUT = ("attack", "view", "transfer_from", "needs", "limit", "protocol")
# What a setting can need of a model.
NEEDS = ("router", "experts")


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
        review: called with {stage: examples broken} and the number of examples when all stages are done.
        view: name of the view (:mod:`moat.attacks.parts.views`) that is attacked instead of the model.
        transfer_from: name of another model that is attacked instead; ``source`` is that model.
        needs: "router" or "experts": what a model must have for this attack to make sense.
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
    needs: str | None = None
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
        if self.view is None:
            return model
        return _views().view(model, self.view)

    def obstacle(self, model: torch.nn.Module) -> str | None:
        """Why this attack does not apply to ``model``; None where it does."""
        if self.transfer_from is not None and self.source is None:
            return f"no model {self.transfer_from!r} to transfer from"
        if self.needs == "router" and not hasattr(model, "route_logits"):
            return "the model has no router"
        if self.needs == "experts" and len(_views().views_of(model)) == 1:
            return "the model has no experts and no router that are known"
        if self.view is not None and self.view not in _views().views_of(model):
            return f"the model has no view {self.view!r}"
        return None


def _views():
    # Imported by name: trainings, whose sources are found by their imports, attack no views and no mixtures by them.
    return importlib.import_module("moat.attacks.parts.views")


def resolve(name: str, setting: Mapping[str, Any]) -> Attack:
    """The attack of a setting as written in ``config/attacks.yaml``: ``{attack: pgd, eps: "8/255", steps: 10, …}``.

    Raises:
        ConfigError: unknown attack, unknown or missing parameter, or a value of the wrong type; names the
            setting, the key and what is allowed.
    """
    from moat import attacks

    where = f"attack setting {name!r}"
    if "attack" not in setting:
        raise ConfigError(f"{where}: the key 'attack' is missing; allowed: {', '.join(attacks.names())}")
    try:
        function = attacks.get(setting["attack"])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    signature = inspect.signature(function).parameters
    parameters = _parameters(signature, setting, where)
    about = _about(setting, where)
    family = importlib.import_module(f"moat.attacks.{setting['attack']}")
    stages = getattr(family, "stages", None)
    return Attack(
        parameters={"attack": setting["attack"], **about, **parameters},
        function=functools.partial(function, **parameters),
        eps=parameters.get("eps", 0.0 if setting["attack"] == "none" else None),
        steps=parameters.get("steps", parameters.get("n_iter", 0 if setting["attack"] == "none" else 1)),
        takes_generator="generator" in signature,
        stages=None if stages is None else functools.partial(stages, **parameters),
        review=getattr(family, "review", None),
        batch_size=parameters.get("batch_size"),
        **about,
    )


def _about(setting: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those of the keys ``ABOUT`` that a setting has, but the attack's name."""
    about = {key: setting[key] for key in ABOUT if key in setting and key != "attack"}
    if "needs" in about and about["needs"] not in NEEDS:
        raise ConfigError(f"{where}: needs: {about['needs']!r} is not allowed; one of {', '.join(NEEDS)}")
    if "view" in about and "transfer_from" in about:
        raise ConfigError(f"{where}: view and transfer_from are both given; another model is attacked as it is")
    limit = about.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigError(f"{where}: limit: {limit!r} is not allowed; a whole number from 1, or null for all")
    return about


def _parameters(signature: Mapping[str, inspect.Parameter], setting: Mapping[str, Any], where: str) -> dict[str, Any]:
    from moat.base.errors import unknown_name

    allowed = {key: parameter for key, parameter in signature.items() if key not in _BATCH_ARGUMENTS}
    given = {key: value for key, value in setting.items() if key not in ABOUT}
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{where} ({setting['attack']}): " + unknown_name(key, allowed, what="parameter"))
    for key, parameter in allowed.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ConfigError(f"{where} ({setting['attack']}): the parameter {key!r} is missing")
    defaults = {key: parameter.default for key, parameter in allowed.items() if key not in given}
    converted = {key: _convert(allowed[key], value, f"{where}: {key}") for key, value in given.items()}
    return {key: {**defaults, **converted}[key] for key in allowed}


def _convert(parameter: inspect.Parameter, value: Any, where: str) -> Any:
    if parameter.annotation is float:
        return parse_number(value, where=where)
    if parameter.annotation is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"{where}: {value!r} is not a whole number")
    return value
