"""The training methods, one module each; a module's name, with ``-`` for ``_``, is the registry name.

Modules whose name begins with ``_`` hold what several methods share.
"""

import importlib
import pkgutil

from moat.base.errors import ConfigError, unknown_name

_SHARED = {"base", "losses", "schedules"}


def names() -> list[str]:
    """Registry names of all methods, without importing them."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if _is_method(m.name))


def _is_method(module: str) -> bool:
    return module not in _SHARED and not module.startswith("_")


def get(name: str) -> type:
    """The :class:`moat.methods.base.Method` subclass registered as ``name``.

    Raises:
        ConfigError: no such method; lists those there are. Or its module has no ``METHOD``; names the file.
    """
    if name not in names():
        raise ConfigError(unknown_name(name, names(), what="method"))
    module = importlib.import_module(f"moat.methods.{name.replace('-', '_')}")
    method = getattr(module, "METHOD", None)
    if not isinstance(method, type):
        missing = "there is no METHOD in it" if method is None else f"METHOD is {method!r}"
        raise ConfigError(
            f"{module.__file__}: {missing}; a method's module ends in `METHOD = <its class>`, a subclass of "
            "moat.methods.base.Method (what methods share is in modules whose names begin with _)"
        )
    return method
