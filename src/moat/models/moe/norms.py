"""Batch norm after channel experts: shared by all of them, or one for each."""

import torch
from torch import nn
from torch.nn import functional as F


class SharedBatchNorm2d(nn.BatchNorm2d):
    """One batch norm for all experts: the statistics of channel j mix every expert's j-th filter over the batch."""

    def forward(self, x: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class ExpertBatchNorm2d(nn.Module):
    """One batch norm per expert, applied to the samples that are routed to it."""

    def __init__(self, channels: int, experts: int):
        super().__init__()
        self.experts = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(experts))

    def forward(self, x: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        for expert in route.unique().tolist():
            chosen = route == expert
            y[chosen] = self.normalize(expert, x[chosen])
        return y

    def normalize(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """The samples (B, C, H, W) of one expert after its batch norm."""
        norm = self.experts[expert]
        if self.training and x[:, 0].numel() == 1:
            # A single value has no variance: use the running statistics, and leave them as they are.
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(x)


NORMS = {"shared": lambda channels, experts: SharedBatchNorm2d(channels), "per_expert": ExpertBatchNorm2d}


def make_norm(name: str, channels: int, experts: int) -> nn.Module:
    """The batch norm ``name`` (a key of ``NORMS``), called with a batch and the route (B,) of its samples."""
    return NORMS[name](channels, experts)
