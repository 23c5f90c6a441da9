"""The training methods: a class in each module that does not begin with ``_``; a recipe names the module.

The name by which a recipe calls a class is its module's, with ``-`` for ``_``. A project's own are in its folder
``plugins/methods`` (:mod:`moat.base.plugins`).
"""

import importlib

from moat.base import plugins
from moat.base.errors import ConfigError, unknown_name

__path__ = plugins.SearchPath("methods")


def names() -> list[str]:
    """The names of all method classes, without importing them."""
    return sorted(plugins.method_classes())


def get(name: str) -> type:
    """The :class:`moat.methods.base.Method` subclass that a recipe's ``class: <name>`` means.

    Raises:
        ConfigError: no such class; lists those there are. Or its module has no ``METHOD``; names the file.
    """
    if name not in names():
        raise ConfigError(unknown_name(name, names(), what="method class"))
    module = importlib.import_module(f"moat.methods.{name.replace('-', '_')}")
    method = getattr(module, "METHOD", None)
    if not isinstance(method, type):
        raise ConfigError(plugins.no_method(module.__file__, method and repr(method)))
    return method


def __getattr__(name: str):
    # Imported on first use, so that `import moat` is enough for `moat.methods.losses.trades`.
    if name == "losses":
        return importlib.import_module(f"{__name__}.losses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
