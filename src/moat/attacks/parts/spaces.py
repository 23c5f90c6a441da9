"""The spaces that an attack may live in: pixels, or normalised tensors without a clamp.

The correct one is ``pixel``: epsilon in units of [0,1], results in [0,1]. ``normalised_noclip`` is a flawed one that
some papers seem to use: epsilon and step size in units of the data's standard deviation, and nothing keeps the result
an image. At CIFAR-10's deviations of about 0.25, its 8/255 are 2/255 of a pixel.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.models.nets.normalize import Normalize

AttackFunction = Callable[..., torch.Tensor]

#: How far beyond the normalised images a result may lie, in normalised units: no attack's epsilon is above 1.
_MARGIN = 1.0
#: Parameters that are lengths.
_LENGTHS = ("eps", "step_size")


class Space(NamedTuple):
    """A model seen from another space, in which the attacks of this package work as they are.

    They clamp to [0,1], so the space is laid out such that [0,1] holds all normalised images with room to spare on all
    sides, the same length in all channels. A clamp then never binds.

    Attributes:
        view: the model on images of the space (B, C, H, W); its own module, modes and parameters are shared.
        to_space, from_space: images in pixel units to images of the space, and back. What comes back need not be
            within [0,1].
        scale: the length in the space of 1 in normalised units; an attack's eps and step size are multiplied by it.
    """

    view: nn.Module
    to_space: Callable[[torch.Tensor], torch.Tensor]
    from_space: Callable[[torch.Tensor], torch.Tensor]
    scale: float


class _View(nn.Module):
    """``model(from_space(u))``: the model's first layer undoes what ``from_space`` multiplies and adds."""

    def __init__(self, model: nn.Module, from_space: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model, self.from_space = model, from_space

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.model(self.from_space(u))


def in_normalised_space(model: nn.Module) -> Space:
    """``model`` without its normalisation, on normalised images that are moved and shrunk into [0,1].

    Raises:
        ConfigError: the model has no normalisation layer, or several that differ.
    """
    mean, std = _statistics(model)
    low = (-mean / std).min() - _MARGIN
    span = ((1 - mean) / std).max() + _MARGIN - low
    factor, offset = std * span, mean + std * low

    def from_space(u: torch.Tensor) -> torch.Tensor:
        return u * factor + offset

    def to_space(x: torch.Tensor) -> torch.Tensor:
        return (x - offset) / factor

    return Space(_View(model, from_space), to_space, from_space, 1 / float(span))


def normalised_noclip(attack: AttackFunction) -> AttackFunction:
    """The attack with its ``eps`` and ``step_size`` in normalised units and no clamp; it returns pixel units.

    A random start of kind "normal" has another size there: 0.001 of the space's length.
    """

    @functools.wraps(attack)
    def attack_in_space(model: nn.Module, x: torch.Tensor, y: torch.Tensor, **parameters) -> torch.Tensor:
        space = in_normalised_space(model)
        for name in _LENGTHS:
            if parameters.get(name) is not None:
                parameters[name] = parameters[name] * space.scale
        return space.from_space(attack(space.view, space.to_space(x), y, **parameters))

    return attack_in_space


def _pixel(attack: AttackFunction) -> AttackFunction:
    return attack


#: Name -> what makes an attack one of that space. The names are those of a recipe's ``attack_space``.
SPACES: Mapping[str, Callable[[AttackFunction], AttackFunction]] = {
    "pixel": _pixel,
    "normalised_noclip": normalised_noclip,
}


def _statistics(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (1, C, 1, 1) of the model's normalisation: that of all its parts."""
    layers = [module for module in model.modules() if isinstance(module, Normalize)]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no normalisation layer: it has no normalised space to attack in")
    first = layers[0]
    for layer in layers[1:]:
        if not (torch.equal(layer.mean, first.mean) and torch.equal(layer.std, first.std)):
            raise ConfigError(f"the parts of {type(model).__name__} normalise differently: there is no one space")
    return first.mean, first.std
