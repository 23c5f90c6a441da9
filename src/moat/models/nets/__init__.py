"""Backbones, built by name. A module of this package offers nets in a dict ``NETS: name -> builder``.

A builder takes ``(num_classes, *, width, image_size, in_channels)`` and returns a
:class:`moat.models.nets.classifier.Classifier` without normalisation or initialisation; :func:`build` adds both.
"""

import functools
import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence

from torch import nn

from moat.base import plugins
from moat.base.errors import ConfigError, unknown_name
from moat.models.nets.classifier import Classifier, initialize
from moat.models.nets.cost import count_macs, count_parameters
from moat.models.nets.normalize import make_normalize

__all__ = ["Classifier", "build", "count_macs", "count_parameters", "initialize", "names"]

Normalization = str | tuple[Sequence[float], Sequence[float]] | None


def _registry() -> dict[str, Callable[..., Classifier]]:
    """The nets of this package and of the project's ``plugins/models``."""
    nets = dict(_own_nets())
    for name, path in plugins.project_modules("models").items():
        offered = getattr(importlib.import_module(f"moat.models.{name}"), "NETS", {})
        if twice := nets.keys() & offered.keys():
            raise ConfigError(f"{path}: there is a net {', '.join(sorted(twice))} already; rename the plug-in's")
        nets.update(offered)
    return nets


@functools.cache
def _own_nets() -> dict[str, Callable[..., Classifier]]:
    nets: dict[str, Callable[..., Classifier]] = {}
    for module in pkgutil.iter_modules(__path__):
        offered = getattr(importlib.import_module(f"{__name__}.{module.name}"), "NETS", {})
        twice = nets.keys() & offered.keys()
        assert not twice, f"{module.name}.py offers {sorted(twice)} again"
        nets.update(offered)
    return nets


def names() -> list[str]:
    """The names that :func:`build` knows, sorted."""
    return sorted(_registry())


def build(
    name: str,
    num_classes: int,
    *,
    width: float = 1.0,
    image_size: int = 32,
    normalize: Normalization = "cifar10",
    in_channels: int = 3,
) -> nn.Module:
    """Build a freshly initialised classifier.

    It maps images (B, in_channels, image_size, image_size), float in [0,1], to logits (B, num_classes),
    and has ``.features(x)`` (B, D) with ``logits = model.head(features)``. Weights are drawn from
    PyTorch's global random numbers: seed them before.

    Args:
        name: one of :func:`names`.
        width: factor on every hidden channel count, rounded, at least 4 channels.
        image_size: height and width of the images in pixels. Only nets without global pooling depend on it.
        normalize: name of channel statistics, a pair (mean, std) of sequences, or None. A layer inside the model.

    Raises:
        ConfigError: unknown ``name`` or ``normalize``, or a number out of range.
    """
    builders = _registry()
    if name not in builders:
        raise ConfigError(unknown_name(name, builders, what="net"))
    _check_sizes(num_classes=num_classes, image_size=image_size, in_channels=in_channels)
    if not (math.isfinite(width) and width > 0):
        raise ConfigError(f"width: {width!r} is not allowed; a factor above 0, e.g. 0.25")
    net = builders[name](num_classes, width=width, image_size=image_size, in_channels=in_channels)
    net.normalize = make_normalize(normalize, in_channels)
    initialize(net)
    return net


def _check_sizes(**sizes: int) -> None:
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key}: {value!r} is not allowed; a whole number from 1")
