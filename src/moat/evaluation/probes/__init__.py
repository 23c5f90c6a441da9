"""Probes: arrays taken from a trained model for tables and figures that show more than accuracies. One module per kind.

A module has ``PARAMETERS``, the parameters that its entries in ``config/probes.yaml`` may have, and a function
``collect(model, images, **parameters)`` that returns name -> numpy array. ``images`` is an :class:`Images`, made from
the parameters ``setting`` and ``images``; the others are passed on.
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
    """The module of a kind of probe.

    Raises:
        ConfigError: unknown ``kind``.
    """
    if kind not in probe_kinds():
        raise ConfigError("config/probes.yaml: " + unknown_name(kind, probe_kinds(), what="kind of probe"))
    return importlib.import_module(f"{__name__}.{kind}")


def collect(name: str, probe: Mapping[str, Any], model: nn.Module, images: Images) -> dict[str, np.ndarray]:
    """The arrays of a probe. ``probe`` is the entry ``name`` of ``config/probes.yaml``.

    Raises:
        ConfigError: an unknown parameter, or a model that this kind of probe does not apply to.
    """
    module = get(probe["probe"])
    parameters = {key: value for key, value in probe.items() if key != "probe"}
    for key in parameters:
        if key not in module.PARAMETERS:
            what = f"parameter of a probe {probe['probe']!r}"
            raise ConfigError(f"config/probes.yaml: {name}: " + unknown_name(key, module.PARAMETERS, what=what))
    if "setting" in module.PARAMETERS and "setting" not in parameters:
        raise ConfigError(f"config/probes.yaml: {name}: no setting given; name one of config/attacks.yaml")
    own = {key: value for key, value in parameters.items() if key not in ("setting", "images")}
    return module.collect(model, images, **own)
