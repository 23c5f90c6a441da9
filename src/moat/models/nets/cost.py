"""The cost of a net: parameters, and multiply-adds for one image."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int, in_channels: int) -> int:
    """Multiply-adds of the convolutions and matrix products for one image, counted during one forward pass.

    The operators that run are counted, so routed and grouped layers count as computed. Batch norm, activations and
    pooling are left out, as usual. The mode of each module is restored.
    """
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, in_channels, image_size, image_size, device=device))
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.get_total_flops() // 2
