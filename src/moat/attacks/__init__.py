"""Attacks: procedures that look for a misclassified image near a given one.

One file per family. The file's name is the attack's registry name, and its function of the same name has
the signature ``(model, x, y, *, parameters…) -> x_adv``: images float in [0,1] (B, C, H, W), labels int64 (B,),
a result of x's shape and memory format within the ball and [0,1]. The model is left with the modes, the
``requires_grad`` and the gradients it had. The functions are attributes of this package: ``moat.attacks.pgd``.

:func:`for_attack` makes the copy of a model on which any of them is fastest.
"""

import importlib
import pkgutil
from collections.abc import Callable

import torch

from moat.kernels import AttackCopy as AttackCopy
from moat.kernels import for_attack as for_attack

_REGISTRY: dict[str, Callable[..., torch.Tensor]] = {}

for _module in pkgutil.iter_modules(__path__):
    _function = getattr(importlib.import_module(f"{__name__}.{_module.name}"), _module.name, None)
    if _function is not None:
        _REGISTRY[_module.name] = _function
# After all imports: importing a submodule sets the package's attribute to the module.
globals().update(_REGISTRY)


def names() -> list[str]:
    """The registered attacks, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> Callable[..., torch.Tensor]:
    """The attack's function.

    Raises:
        ConfigError: unknown ``name``.
    """
    from moat.base.errors import ConfigError, unknown_name

    if name not in _REGISTRY:
        raise ConfigError(unknown_name(name, _REGISTRY, what="attack"))
    return _REGISTRY[name]
