"""Channel normalisation as a layer, so that attacks work on pixels in [0,1]."""

from collections.abc import Sequence

import torch
from torch import nn

from moat.base.errors import ConfigError, unknown_name

# Mean and standard deviation per channel of the training images, all pixels pooled. CIFAR-10's widely copied
# (0.2023, 0.1994, 0.2010) is another thing: the mean of per-image deviations.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
}


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel; both are buffers, saved with the weights."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def make_normalize(
    statistics: str | tuple[Sequence[float], Sequence[float]] | None, in_channels: int
) -> Normalize | nn.Identity:
    """The layer for a name in ``STATISTICS``, for a pair (mean, std), or for None (identity).

    Statistics of one channel serve images of any number of channels (grey images stored as RGB).

    Raises:
        ConfigError: unknown name, a wrong number of channels, or a standard deviation that is not positive.
    """
    if statistics is None:
        return nn.Identity()
    if isinstance(statistics, str) and statistics not in STATISTICS:
        raise ConfigError("normalize: " + unknown_name(statistics, STATISTICS, what="statistics"))
    mean, std = (
        _per_channel(values, in_channels, kind) for values, kind in zip(_pair(statistics), ("mean", "std"), strict=True)
    )
    if min(std) <= 0:
        raise ConfigError(f"normalize: std {std!r} is not allowed; every value above 0")
    return Normalize(mean, std)


def _pair(statistics) -> Sequence[Sequence[float]]:
    pair = STATISTICS[statistics] if isinstance(statistics, str) else statistics
    if len(pair) != 2 or any(isinstance(values, (int, float)) for values in pair):
        raise ConfigError(f"normalize: {statistics!r} is not allowed; a name, a pair (mean, std), or none")
    return pair


def _per_channel(values: Sequence[float], in_channels: int, kind: str) -> list[float]:
    if len(values) not in (1, in_channels):
        raise ConfigError(f"normalize: {kind} {tuple(values)!r} has {len(values)} channels; the images {in_channels}")
    return [float(value) for value in values] * (in_channels // len(values))
