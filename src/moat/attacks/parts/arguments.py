"""What every attack does with its arguments: checks them, and guards and freezes the model while it runs."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from moat.attacks.parts.steps import frozen
from moat.base.errors import ConfigError
from moat.models.guard import guarded

Parameters = Mapping[str, Mapping[str, Any]]

# The types of a declaration -> which values are of it, and how a message says that.
_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "distance": (
        lambda value: _is_number(value) and 0 <= value <= 1,
        "a number from 0 to 1 (pixels are in [0,1]: write 8/255)",
    ),
    "count": (lambda value: _is_whole(value) and value >= 1, "a whole number from 1"),
    "integer": (lambda value: _is_whole(value), "a whole number"),
    "number": (lambda value: _is_number(value), "a number"),
    "string": (lambda value: isinstance(value, str), "a text"),
    "null": (lambda value: value is None, "null"),
}


def attack(parameters: Parameters) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Decorates the function of an attack family.

    Its arguments are checked, labels become int64, a model from elsewhere stands behind a
    :class:`moat.models.guard.Guard`, and the model is frozen while the function runs.

    Args:
        parameters: keyword -> what it may be, in words of JSON Schema: ``type`` (also "distance": a number from 0 to
            1, and "count": a whole number from 1), ``enum``, ``minimum``, ``pattern``, ``description``.

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
        allowed = parameters[key]
        types = allowed.get("type", [])
        types = [types] if isinstance(types, str) else types
        refused = (
            (types and not any(_TYPES[name][0](value) for name in types))
            or ("enum" in allowed and value not in allowed["enum"])
            or ("minimum" in allowed and _is_number(value) and value < allowed["minimum"])
            or ("pattern" in allowed and isinstance(value, str) and not re.search(allowed["pattern"], value))
        )
        if refused:
            raise ConfigError(f"{key}: {value!r} is not allowed; {_in_words(allowed, types)}")


def _in_words(allowed: Mapping[str, Any], types: Sequence[str]) -> str:
    if "enum" in allowed:
        return f"one of {', '.join(map(repr, allowed['enum']))}"
    if "pattern" in allowed:
        return allowed.get("description", allowed["pattern"])
    at_least = f" from {allowed['minimum']}" if "minimum" in allowed else ""
    return " or ".join(_TYPES[name][1] for name in types) + at_least


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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
