"""Probes: what one pass through a trained model leaves for figures that show more than accuracies. One module a kind.

A module has ``TAKES``, the parameters that its entries in ``config/probes.yaml`` may have, and
``collect(model, images, **parameters)``, which returns name -> numpy array; ``images`` are :class:`Images`, and the
parameters those of the entry but ``setting`` and ``images``, which are in them.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from moat.base.errors import ConfigError, unknown_name
from moat.base.plugins import probe_kinds
from moat.evaluation.probes._images import Images

__all__ = ["Images", "collect", "get"]


def get(kind: str) -> ModuleType:
    """The module of a kind.

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    if kind not in probe_kinds():
        raise ConfigError("config/probes.yaml: " + unknown_name(kind, probe_kinds(), what="kind of probe"))
    return importlib.import_module(f"{__name__}.{kind}")


def collect(name: str, probe: Mapping[str, Any], model: nn.Module, images: Images) -> dict[str, np.ndarray]:
    """The arrays of the probe ``name`` of ``config/probes.yaml``, whose entry is ``probe``.

    Raises:
        ConfigError: a parameter that the kind does not take, or a model that the kind says nothing about.
    """
    module = get(probe["probe"])
    parameters = {key: value for key, value in probe.items() if key != "probe"}
    for key in parameters:
        if key not in module.TAKES:
            what = f"parameter of a probe {probe['probe']!r}"
            raise ConfigError(f"config/probes.yaml: {name}: " + unknown_name(key, module.TAKES, what=what))
    if "setting" in module.TAKES and "setting" not in parameters:
        raise ConfigError(f"config/probes.yaml: {name}: no setting given; name one of config/attacks.yaml")
    own = {key: value for key, value in parameters.items() if key not in ("setting", "images")}
    return module.collect(model, images, **own)
