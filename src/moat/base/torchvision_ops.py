"""Import torchvision, and what imports it, beside any build of torch.

PyPI's torchvision is built against the CUDA build of torch. Beside a CPU build its compiled operators fail to load, and
so does the import, which registers shapes for the then missing ``nms`` and ``qnms``. Declaring these two operators is
enough for networks and transforms; calling one of them still fails. Where the compiled operators load, nothing is
declared.
"""

import contextlib
import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from moat.base.errors import ConfigError

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
NAMES = ("torchvision::nms", "torchvision::qnms")


def library(module: str, *, user: str) -> ModuleType:
    """Import a module of torchvision, or of a package that imports torchvision. Takes seconds the first time.

    Args:
        user: what needs it, the subject of the error message: "this net", "augment: autoaugment".

    Raises:
        ConfigError: it cannot be imported; says which package to install.
    """
    declare_missing_operators()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{user} is {package}'s, which cannot be imported ({error}); `pip install {package}`, "
            "in the version of envs/requirements.lock"
        ) from error


@functools.cache
def declare_missing_operators() -> None:
    """Load torchvision's compiled operators if possible, and declare those that importing it requires otherwise."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    for compiled in sorted(Path(found.submodule_search_locations[0]).glob("_C*")):
        with contextlib.suppress(OSError):
            torch.ops.load_library(compiled)
    for name in NAMES:
        if not is_declared(name):
            torch.library.define(name, SCHEMA)


def is_declared(name: str) -> bool:
    """Whether torch knows the operator ``name``, such as ``"torchvision::nms"``."""
    namespace, operator = name.split("::")
    return hasattr(getattr(torch.ops, namespace), operator)
