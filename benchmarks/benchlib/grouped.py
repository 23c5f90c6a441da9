"""Nets of one architecture as a single net of grouped convolutions: another way to run the experts of a mixture."""

import copy
from collections.abc import Sequence

import torch
from torch import nn


class Grouped(nn.Module):
    """The nets' logits (E, B, K) for images (B, C, H, W), computed in one pass over their concatenated channels.

    Batch norm over all channels is each net's own, also in training mode. The first convolution is dense, since all
    nets see the same image.

    Args:
        nets: residual nets of one architecture, of :func:`moat.models.nets.build`, with equal normalisation.
    """

    def __init__(self, nets: Sequence[nn.Module]):
        super().__init__()
        first = nets[0]
        self.normalize, self.trunk = copy.deepcopy(first.normalize), copy.deepcopy(first.trunk)
        names = [name for name, module in self.trunk.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
        for name in names:
            parts = [net.trunk.get_submodule(name) for net in nets]
            parent, _, attribute = name.rpartition(".")
            setattr(self.trunk.get_submodule(parent), attribute, _joined(parts))
        self.weight = nn.Parameter(torch.stack([net.head.weight.detach() for net in nets]))
        self.bias = nn.Parameter(torch.stack([net.head.bias.detach() for net in nets]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.trunk(self.normalize(x))
        features = features.view(len(x), len(self.weight), -1).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], features, self.weight.transpose(1, 2))


def _joined(parts: Sequence[nn.Module]) -> nn.Module:
    """One layer for the channels of all nets: a grouped convolution, or a batch norm."""
    first, count = parts[0], len(parts)
    if isinstance(first, nn.BatchNorm2d):
        joined: nn.Module = nn.BatchNorm2d(count * first.num_features, eps=first.eps, momentum=first.momentum)
    else:
        dense = first.in_channels == 3  # the stem
        joined = nn.Conv2d(
            first.in_channels if dense else count * first.in_channels,
            count * first.out_channels,
            first.kernel_size,
            stride=first.stride,
            padding=first.padding,
            groups=1 if dense else count,
            bias=first.bias is not None,
        )
    states = [part.state_dict() for part in parts]
    kept = [name for name, value in states[0].items() if value.ndim]
    state = {name: torch.cat([each[name] for each in states]) for name in kept}
    joined.load_state_dict(state, strict=False)
    return joined.to(next(first.parameters()).dtype).train(first.training)
