"""Mixtures built by name. A mixture is a module with a ``MIXTURE``, here or in a project's ``plugins/models``.

``MIXTURE(arch, num_classes, *, width, image_size, in_channels, normalize, …)`` returns a freshly initialised model that
maps images (B, C, H, W) in [0,1] to logits (B, K); its keywords beside these are the module's literal ``PARAMETERS``
(:mod:`moat.base.plugins`). The model may have ``attack_views()`` (:mod:`moat.models.moe.views`) and, if it routes,
``route_logits(x)`` (B, E).
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from moat.base import plugins
from moat.base.errors import ConfigError, unknown_name
from moat.models.nets import Normalization


def build_mixture(
    kind: str,
    arch: str,
    num_classes: int,
    *,
    width: float = 1.0,
    image_size: int = 32,
    in_channels: int = 3,
    normalize: Normalization = "cifar10",
    **options: Any,
) -> nn.Module:
    """A freshly initialised mixture of nets ``arch``; the keywords are those of :func:`moat.models.build` and these.

    Args:
        kind: "dwf" (options ``experts``, 9; ``gate_hidden``, units of the gating network at width 1, 256), "sramoe"
            (``experts``, 2), "soe" (``experts``, 3), "mocse" (``aggregation`` and ``expert_width``, see
            :mod:`moat.models.moe.mocse`), "moe-cnn" (see :func:`moat.models.build_moe_cnn`), "mixed-fixed",
            "mixednuts", "adaptive-smoothing", "rt-er", "jtd-moe" or "blockmoe" (see the modules of these names), or one
            of the project's.

    Raises:
        ConfigError: unknown kind, option, net, aggregation or normalisation, or a number out of range.
    """
    build = builder(kind)
    net = {"width": width, "image_size": image_size, "in_channels": in_channels, "normalize": normalize}
    keywords = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    allowed = [name for name in keywords if name not in net]
    for name in options:
        if name not in allowed:
            raise ConfigError(unknown_name(name, allowed, what=f"option of {kind}"))
    return build(arch, num_classes, **net, **options)


def builder(kind: str) -> Callable[..., nn.Module]:
    """The ``MIXTURE`` of a kind.

    Raises:
        ConfigError: unknown kind; lists those there are.
    """
    files = plugins.mixtures()
    if kind not in files:
        raise ConfigError(unknown_name(kind, files, what="mixture"))
    package = "moat.models.moe" if files[kind].parent.name == "moe" else "moat.models"
    return importlib.import_module(f"{package}.{files[kind].stem}").MIXTURE
