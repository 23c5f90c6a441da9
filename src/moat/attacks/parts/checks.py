"""Argument checks that all attacks share. Each message names the value and what is allowed."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from moat.base.errors import ConfigError


def check_budget(**budgets: float) -> None:
    """Distances in pixel units: finite numbers from 0 to 1.

    Raises:
        ConfigError: names the parameter.
    """
    for key, value in budgets.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and 0 <= value <= 1):
            raise ConfigError(
                f"{key}: {value!r} is not allowed; a number from 0 to 1 (pixels are in [0,1]: write 8/255)"
            )


def check_iterations(**counts: int) -> None:
    """Whole numbers from 1.

    Raises:
        ConfigError: names the parameter.
    """
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key}: {value!r} is not allowed; a whole number from 1")


def check_choice(**choices: tuple[object, Iterable[object] | Mapping[object, object]]) -> None:
    """Each value must be one of those beside it.

    Raises:
        ConfigError: names the parameter and all allowed values.
    """
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{key}: {value!r} is not allowed; one of {', '.join(map(repr, allowed))}")


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
