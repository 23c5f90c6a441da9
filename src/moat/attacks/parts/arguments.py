"""What every attack does with its arguments: checks them, and guards and freezes the model while it runs."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from moat.attacks.parts.steps import frozen
from moat.base.errors import ConfigError
from moat.config import schema
from moat.config.method_schema import in_json_schema
from moat.models.guard import guarded

Parameters = Mapping[str, Mapping[str, Any]]

# The types that JSON Schema does not have.
_OWN_TYPES: Mapping[str, Mapping[str, Any]] = {
    "distance": {"type": "number", "minimum": 0, "maximum": 1},
    "count": {"type": "integer", "minimum": 1},
}
# How a message says a type.
_TYPES_IN_WORDS = {
    "distance": "a number from 0 to 1 (pixels are in [0,1]: write 8/255)",
    "count": "a whole number from 1",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}
# Words of a declaration that limit no value.
_NO_LIMITS = ("default", "required", "follows", "description")


def attack(parameters: Parameters) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Decorates the function of an attack family.

    Its arguments are checked, labels become int64, a model from elsewhere stands behind a
    :class:`moat.models.guard.Guard`, and the model is frozen while the function runs.

    Args:
        parameters: keyword -> what it may be, in the words of JSON Schema; ``type`` may also be "distance" (a number
            from 0 to 1) or "count" (a whole number from 1).

    The decorated function raises ConfigError for a parameter that is not allowed, ValueError for images outside [0,1]
    or labels that do not fit.
    """

    def decorate(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(function)
        def checked(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **options) -> torch.Tensor:
            check_parameters(parameters, **{key: value for key, value in options.items() if key in parameters})
            check_batch(x, y, options.get("generator"))
            model = guarded(model)
            with frozen(model):
                return function(model, x, y.to(torch.int64), **options)

        return checked

    return decorate


def check_parameters(parameters: Parameters, **values: Any) -> None:
    """Check values against their declarations.

    Raises:
        ConfigError: names the parameter, the value and what is allowed.
    """
    for key, value in values.items():
        checked_by = _validator(json.dumps(parameters[key], sort_keys=True))
        plain = list(value) if isinstance(value, tuple) else value
        if not checked_by.is_valid(plain):
            said = _in_words(parameters[key]) or schema.find_fault(plain, checked_by).message
            raise ConfigError(f"{key}: {value!r} is not allowed; {said}")


# An attack is called for every batch.
@functools.cache
def _validator(declaration: str):
    return schema.validator(in_json_schema(json.loads(declaration), _OWN_TYPES, where="PARAMETERS"))


def _types(allowed: Mapping[str, Any]) -> list[str]:
    types = allowed.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _in_words(allowed: Mapping[str, Any]) -> str:
    """What is allowed; "" where a declaration has words that make no short sentence."""
    if "enum" in allowed:
        return f"one of {', '.join(map(repr, allowed['enum']))}"
    if "pattern" in allowed:
        return allowed.get("description", allowed["pattern"])
    if set(allowed) - {*_NO_LIMITS, "type", "minimum", "maximum"}:
        return allowed.get("description", "")
    limits = [f" {word} {allowed[key]}" for word, key in (("from", "minimum"), ("to", "maximum")) if key in allowed]
    return " or ".join(_TYPES_IN_WORDS.get(name, name) for name in _types(allowed)) + "".join(limits)


def check_budget(**budgets: float) -> None:
    """Distances in pixel units: numbers from 0 to 1; ConfigError otherwise."""
    check_parameters(dict.fromkeys(budgets, {"type": "distance"}), **budgets)


def check_iterations(**counts: int) -> None:
    """Whole numbers from 1; ConfigError otherwise."""
    check_parameters(dict.fromkeys(counts, {"type": "count"}), **counts)


def check_batch(x: torch.Tensor, y: torch.Tensor, generator: object = None) -> None:
    """Images float (B, …) in [0,1], labels whole numbers (B,), a generator per example if several.

    Raises:
        ValueError: names what does not fit.
    """
    if not x.is_floating_point():
        raise ValueError(f"images are {x.dtype}; attacks take floating point in [0,1]")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"labels are {y.dtype} of shape {tuple(y.shape)}; whole numbers of shape ({len(x)},) expected")
    if isinstance(generator, Sequence) and len(generator) != len(x):
        raise ValueError(f"{len(generator)} generators for {len(x)} examples; one per example expected")
    if x.numel():
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images range from {low:g} to {high:g}; attacks take pixels in [0,1], not normalised ones"
            )
