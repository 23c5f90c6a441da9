"""Import this before torchvision, and torchvision imports beside any build of torch.

The torchvision of the Python package index is built against the CUDA build of torch; beside a CPU build its compiled
operators do not load, and importing it fails because it registers shapes for ``nms`` and ``qnms``, which do not exist
then. Defining the two names is enough for everything that needs no compiled operator: networks and transforms. Calling
one of the two still fails, as it should. Where the operators load, nothing is defined.
"""

import contextlib
import importlib.util
from pathlib import Path

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
NAMES = ("torchvision::nms", "torchvision::qnms")


def is_defined(name: str) -> bool:
    """Whether torch knows an operator, e.g. ``"torchvision::nms"``."""
    namespace, operator = name.split("::")
    return hasattr(getattr(torch.ops, namespace), operator)


def define_missing() -> None:
    """Load torchvision's own operators if they load; define those that its import asks for and that still lack."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    for library in sorted(Path(found.submodule_search_locations[0]).glob("_C*")):
        with contextlib.suppress(OSError):
            torch.ops.load_library(library)
    for name in NAMES:
        if not is_defined(name):
            torch.library.define(name, SCHEMA)


define_missing()
