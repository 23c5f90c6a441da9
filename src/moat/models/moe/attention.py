"""Spatial attention within groups of channels, and the heads that turn its output into scores.

Source: the dynamic channel attention router of DRAMoE. The paper leaves open how values reach the experts and where
the module sits; here it comes between the router's trunk and its pooling, and each group scores one expert.
"""

import math

import torch
from torch import nn

SMALLEST_HIDDEN = 8


class SpatialAttention(nn.Module):
    """Attention between the N = H * W positions within each of ``groups`` channel groups, c = channels / groups.

    With X_k the k-th group: Z_k = V_k A_k^T, A_k = softmax(kappa_k Q_k K_k^T / sqrt(c)) over the keys. The result's
    k-th group is X_k + Z_k, or with ``two_paths`` w1 Z_k + w2 X_k with weights of a small net on the mean of X_k.

    Args:
        shared_query_key: all groups share one query map and one key map; else each has its own. Value maps are
            always per group.
        learned_scale: kappa_k = exp(theta_k) is learned, initially 1; else it is 1.
        two_paths: w1 + w2 = 1 from the data, initially about 0.27 and 0.73; else both are 1.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        shared_query_key: bool = False,
        learned_scale: bool = False,
        two_paths: bool = False,
    ):
        super().__init__()
        self.groups, self.size = groups, channels // groups
        maps = 1 if shared_query_key else groups
        self.query = nn.ModuleList(nn.Conv2d(self.size, self.size, 1) for _ in range(maps))
        self.key = nn.ModuleList(nn.Conv2d(self.size, self.size, 1) for _ in range(maps))
        self.value = nn.ModuleList(nn.Conv2d(self.size, self.size, 1) for _ in range(groups))
        self.log_scale = nn.Parameter(torch.zeros(groups)) if learned_scale else None
        self.paths = _path_weights(self.size) if two_paths else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape."""
        parts = x.chunk(self.groups, dim=1)
        return torch.cat([self._combine(part, self._attend(part, k)) for k, part in enumerate(parts)], dim=1)

    def weights(self, part: torch.Tensor, k: int) -> torch.Tensor:
        """A_k (B, N, N) of group ``k`` (B, c, H, W): row q is the distribution over the keys of query q."""
        query, key = (_of(maps, k)(part).flatten(2) for maps in (self.query, self.key))
        scale = 1 if self.log_scale is None else self.log_scale[k].exp()
        return torch.softmax(scale * (query.transpose(1, 2) @ key) / math.sqrt(self.size), dim=-1)

    def _attend(self, part: torch.Tensor, k: int) -> torch.Tensor:
        value = self.value[k](part).flatten(2)
        return (value @ self.weights(part, k).transpose(1, 2)).view(part.shape)

    def _combine(self, part: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        if self.paths is None:
            return part + attended
        w1, w2 = torch.softmax(self.paths(part.mean((2, 3))), dim=1).view(-1, 2, 1, 1, 1).unbind(1)
        return w1 * attended + w2 * part


def _of(maps: nn.ModuleList, k: int) -> nn.Module:
    return maps[0] if len(maps) == 1 else maps[k]


def _path_weights(channels: int) -> nn.Module:
    hidden = max(SMALLEST_HIDDEN, channels // 4)
    net = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    with torch.no_grad():
        net[-1].bias.copy_(torch.tensor([0.0, 1.0]))
    return net


class PooledHead(nn.Module):
    """Global mean, then one linear map from all channels to the scores."""

    def __init__(self, channels: int, experts: int):
        super().__init__()
        self.linear = nn.Linear(channels, experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3)))


class GroupedHead(nn.Module):
    """Score k = u_k . mean(Y_k) + b_k from the k-th group of channels alone."""

    def __init__(self, channels: int, experts: int):
        super().__init__()
        self.scores = nn.ModuleList(nn.Linear(channels // experts, 1) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.mean((2, 3)).chunk(len(self.scores), dim=1)
        return torch.cat([score(part) for score, part in zip(self.scores, parts, strict=True)], dim=1)
