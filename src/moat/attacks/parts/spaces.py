"""The space an attack works in: pixels, or normalised images.

Robustness is measured in pixels: epsilon in units of [0,1], and results that are images. Normalised spaces are what
some papers and released codes attack and train in: there, epsilon and step size count in standard deviations of the
data, which are a fifth to a quarter of the range of pixels (:mod:`moat.evaluation.protocols` says what 8/255 comes to),
and bounds may not be those of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from moat.attacks.parts.steps import Bounds, Randomness, ball, random_start_point
from moat.base.errors import ConfigError, unknown_name
from moat.models.guard import class_name
from moat.models.nets.normalize import Normalize, make_normalize

# A name of moat.models.nets.normalize.STATISTICS, a pair (mean, std), or the same as a recipe writes it,
# {"mean": …, "std": …}; or "model" for the model's own.
Statistics = str | tuple[Sequence[float], Sequence[float]] | Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Space:
    """Coordinates z of the images (B, C, H, W), and how far an attack may move in them.

    Attributes:
        normalize: z = (x - mean) / std; None for z = x.
        clip: "image" keeps pixels in [0,1]; "unit" keeps z in [0,1], outside of which most of a normalised image
            lies, so that it is moved far beyond epsilon; "none" keeps nothing but the ball.
    """

    normalize: Normalize | None = None
    clip: Literal["image", "unit", "none"] = "image"

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Images in pixel units to z."""
        return x if self.normalize is None else self.normalize(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z to pixel units, within [0,1] only as far as z is an image."""
        return z if self.normalize is None else z * self.normalize.std + self.normalize.mean

    def bounds(self, z: torch.Tensor, eps: float) -> Bounds:
        """The ball of radius ``eps``, in units of z, around ``z``, clipped."""
        if self.clip == "none":
            return z - eps, z + eps
        if self.normalize is None or self.clip == "unit":
            return ball(z, eps)
        pixels = (
            torch.zeros_like(self.normalize.mean, dtype=z.dtype),
            torch.ones_like(self.normalize.mean, dtype=z.dtype),
        )
        black, white = map(self.encode, pixels)
        return (z - eps).clamp(black, white), (z + eps).clamp(black, white)

    def start(self, z: torch.Tensor, eps: float, kind: bool | str, generator: Randomness) -> torch.Tensor:
        """Where an attack on ``z`` starts: see :func:`moat.attacks.parts.steps.random_start_point`.

        With clip "unit", [0,1] cuts the steps, not the start, as in the code that trains there (ADVMoE's, after
        TRADES and HYDRA): the first gradient is taken at an image that is still whole.
        """
        bounds = (z - eps, z + eps) if self.clip == "unit" and self.normalize is not None else self.bounds(z, eps)
        return random_start_point(z, eps, kind, generator, bounds)

    def view(self, model: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a function of z: a module if it is one, with ``route_logits`` if it has a router."""
        if self.normalize is None:
            return model
        return SpaceView(model, self) if isinstance(model, nn.Module) else lambda z: model(self.decode(z))


class SpaceView(nn.Module):
    """A model as a function of a space's coordinates; its parameters and modes are the model's own."""

    def __init__(self, model: nn.Module, space: Space):
        super().__init__()
        self.model, self.space = model, space
        self.training = model.training
        if hasattr(model, "route_logits"):
            self.route_logits = lambda z: model.route_logits(space.decode(z))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.model(self.space.decode(z))


PIXELS = Space()


def normalised_space(model: nn.Module, *, clip: str, statistics: Statistics = "model") -> Space:
    """The space of images that are normalised before the attack.

    Args:
        statistics: those of the normalisation; "model": of the model's own layer.

    Raises:
        ConfigError: unknown statistics; or the model has no normalisation layer, or several that differ.
    """
    if statistics != "model":
        if isinstance(statistics, Mapping):
            statistics = statistics["mean"], statistics["std"]
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        return Space(make_normalize(statistics, 3).to(device), clip)
    layers = [module for module in model.modules() if isinstance(module, Normalize)]
    if not layers:
        raise ConfigError(f"{class_name(model)} has no normalisation layer: it has no normalised space to attack in")
    for layer in layers[1:]:
        if not (torch.equal(layer.mean, layers[0].mean) and torch.equal(layer.std, layers[0].std)):
            raise ConfigError(f"the parts of {class_name(model)} normalise differently: there is no one space")
    return Space(layers[0], clip)


# The spaces that a recipe's attack_space names, and how each clips.
_CLIPS: Mapping[str, str] = {
    "normalised_noclip": "none",
    "normalised_clip01": "unit",
    "normalised_valid": "image",
}
SPACES = ("pixel", *_CLIPS)


def training_space(name: str, model: nn.Module, statistics: Statistics = "model") -> Space:
    """The space of a recipe's ``attack_space``: its ``name``, one of :data:`SPACES`, and its ``statistics``.

    Raises:
        ConfigError: another name; see also :func:`normalised_space`.
    """
    if name not in SPACES:
        raise ConfigError(f"attack_space.name: {unknown_name(name, SPACES, what='space')}")
    return PIXELS if name == "pixel" else normalised_space(model, clip=_CLIPS[name], statistics=statistics)
