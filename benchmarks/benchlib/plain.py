"""Models without moat's kernels, for the other side of a training benchmark."""

import copy

import torch
from torch import nn


def plain(model: nn.Module) -> nn.Module:
    """A contiguous copy of the definition, also of a model that went through ``moat.kernels.for_training``."""
    copied = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in copied.modules():
        kinds = (kind for kind in type(module).__mro__ if not kind.__module__.startswith("moat.kernels"))
        module.__class__ = next(kinds)
    return copied
