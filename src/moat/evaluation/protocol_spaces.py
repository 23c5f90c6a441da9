"""Where and within which bounds a flawed protocol attacks: see :mod:`moat.evaluation.protocols`."""

import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.models.nets.normalize import Normalize, make_normalize

Bounds = tuple[torch.Tensor, torch.Tensor]


class Space(nn.Module):
    """A model as a function of images in other coordinates, z = (x - mean) / std; without a ``layer``, of pixels."""

    def __init__(self, model: nn.Module, layer: Normalize | nn.Identity):
        super().__init__()
        self.model, self.layer = model, layer
        if hasattr(model, "route_logits"):
            self.route_logits = lambda z: model.route_logits(self.decode(z))
        self.training = model.training

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z * self.layer.std + self.layer.mean if isinstance(self.layer, Normalize) else z

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.model(self.decode(z))


# -- spaces --------------------------------------------------------------------


def pixels(model: nn.Module) -> Space:
    return Space(model, nn.Identity())


def routed_pixels(model: nn.Module) -> Space:
    """Pixels of a model with a router; ConfigError for another."""
    if not hasattr(model, "route_logits"):
        raise ConfigError(f"advmoe-released: {type(model).__name__} has no router whose loss could be climbed")
    return pixels(model)


def normalised(model: nn.Module) -> Space:
    """What the model's own first normalisation makes of the images.

    Raises:
        ConfigError: the model has none.
    """
    layer = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    if layer is None:
        raise ConfigError(f"{type(model).__name__} has no normalisation: there is no normalised space to attack in")
    return Space(model, layer)


def normalised_as_imagenet(model: nn.Module) -> Space:
    """Normalised by ImageNet's statistics, as loaders for Tiny ImageNet are written."""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    return Space(model, make_normalize("imagenet", 3).to(device))


# -- bounds --------------------------------------------------------------------


def within_image(space: Space, z: torch.Tensor, eps: float) -> Bounds:
    """The ball of ``eps`` in the space's units, as far as it holds pixels from 0 to 1."""
    black, white = (space.encode(torch.full_like(z, value)) for value in (0.0, 1.0))
    return torch.maximum(z - eps, black), torch.minimum(z + eps, white)


def without_clip(space: Space, z: torch.Tensor, eps: float) -> Bounds:
    """The whole ball: pixels may leave [0,1]."""
    return z - eps, z + eps


def clipped_to_one(space: Space, z: torch.Tensor, eps: float) -> Bounds:
    """The ball, cut to [0,1] in the space's units, outside which most of an image lies: it is moved far beyond eps."""
    return (z - eps).clamp(0, 1), (z + eps).clamp(0, 1)
