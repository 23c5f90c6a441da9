"""Models as they would be without moat's convolutions: what others' code is given in a benchmark of training."""

import copy

import torch
from torch import nn

from moat.kernels.convolution import Conv2d


def plain(model: nn.Module) -> nn.Module:
    """A copy, contiguous, whose convolutions are PyTorch's in training, too.

    Masked ones, and those of channel experts, are left as they are.
    """
    copied = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in copied.modules():
        if type(module) is Conv2d:
            module.__class__ = nn.Conv2d
    return copied
