"""Named attack settings made callable."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from moat.attacks.steps import Randomness
from moat.config.numbers import parse_number
from moat.errors import ConfigError

_BATCH_ARGUMENTS = ("model", "x", "y", "generator")


@dataclass(frozen=True)
class Attack:
    """An attack with its parameters, ready to call: ``attack(model, x, y, generator=None) -> x_adv``.

    Wrap any callable of that signature in it to evaluate it like a built-in attack.

    Attributes:
        eps: radius of the L-infinity ball in pixel units that results are projected to; None for no ball.
        steps: gradient steps of one restart, 0 without any.
        takes_generator: whether ``function`` has the keyword ``generator``.
        parameters: what the setting comes down to, defaults included, for the record.
        protocol: how it is measured: "correct", or a replica of :mod:`moat.evaluation.protocols`.
    """

    function: Callable[..., torch.Tensor]
    eps: float | None
    steps: int
    takes_generator: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = "correct"

    def __call__(
        self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, generator: Randomness = None
    ) -> torch.Tensor:
        if self.takes_generator:
            return self.function(model, x, y, generator=generator)
        return self.function(model, x, y)


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
    return Attack(
        parameters={key: setting[key] for key in ("attack", "protocol") if key in setting} | parameters,
        function=functools.partial(function, **parameters),
        eps=parameters.get("eps", 0.0 if setting["attack"] == "none" else None),
        steps=parameters.get("steps", 0 if setting["attack"] == "none" else 1),
        takes_generator="generator" in signature,
        protocol=setting.get("protocol", "correct"),
    )


def _parameters(signature: Mapping[str, inspect.Parameter], setting: Mapping[str, Any], where: str) -> dict[str, Any]:
    from moat.config.schema import unknown_name

    allowed = {key: parameter for key, parameter in signature.items() if key not in _BATCH_ARGUMENTS}
    given = {key: value for key, value in setting.items() if key not in ("attack", "protocol")}
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
