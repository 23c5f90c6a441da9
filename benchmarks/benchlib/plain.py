"""Models without moat's convolutions, for the other side of a training benchmark."""

import copy

import torch
from torch import nn

from moat.kernels.convolution import Conv2d


def plain(model: nn.Module) -> nn.Module:
    """A contiguous copy that trains with PyTorch's convolutions, too; masked and channel-expert ones are unchanged."""
    copied = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in copied.modules():
        if type(module) is Conv2d:
            module.__class__ = nn.Conv2d
    return copied
