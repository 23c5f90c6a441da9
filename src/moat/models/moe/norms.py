"""Batch norm behind channel experts: shared by all of them, or one for each."""

import torch
from torch import nn

from moat.models.moe.routing import Groups


class SharedBatchNorm2d(nn.BatchNorm2d):
    """One batch norm for all experts: channel j's statistics mix every expert's j-th filter over the batch."""

    def forward(self, x: torch.Tensor, groups: Groups) -> torch.Tensor:
        return super().forward(x)


class ExpertBatchNorm2d(nn.Module):
    """A batch norm for each expert, on the slice (see ``Groups``) that is routed to it."""

    def __init__(self, channels: int, experts: int):
        super().__init__()
        self.experts = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(experts))

    def forward(self, x: torch.Tensor, groups: Groups) -> torch.Tensor:
        parts = x.split([size for _, size in groups])
        return torch.cat([self._one(expert, part) for (expert, _), part in zip(groups, parts, strict=True)])

    def _one(self, expert: int, part: torch.Tensor) -> torch.Tensor:
        bn = self.experts[expert]
        if self.training and part[:, 0].numel() == 1:
            # A single value has no variance: the running statistics stand in, and stay as they are.
            return nn.functional.batch_norm(part, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return bn(part)


NORMS = {"shared": lambda channels, experts: SharedBatchNorm2d(channels), "per_expert": ExpertBatchNorm2d}


def make_norm(name: str, channels: int, experts: int) -> nn.Module:
    """The batch norm ``name`` (a key of ``NORMS``); call it with the sorted batch and its groups."""
    return NORMS[name](channels, experts)
