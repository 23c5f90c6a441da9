"""The training methods, one module each; a module's name, with ``-`` for ``_``, is the registry name.

Modules whose name begins with ``_`` hold what several methods share.
"""

import importlib
import pkgutil

from moat.config.schema import unknown_name
from moat.errors import ConfigError

_SHARED = {"base", "losses", "schedules"}


def names() -> list[str]:
    """Registry names of all methods, without importing them."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if _is_method(m.name))


def _is_method(module: str) -> bool:
    return module not in _SHARED and not module.startswith("_")


def get(name: str) -> type:
    """The :class:`moat.methods.base.Method` subclass registered as ``name``.

    Raises:
        ConfigError: no such method; lists those there are.
    """
    if name not in names():
        raise ConfigError(unknown_name(name, names(), what="method"))
    return importlib.import_module(f"moat.methods.{name.replace('-', '_')}").METHOD
