"""The gating network of DWF: a small MLP from an image to one score per expert."""

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.nets import Normalization
from moat.models.nets.classifier import scale_channels
from moat.models.nets.normalize import make_normalize


class MlpRouter(nn.Module):
    """Normalise, flatten, one hidden layer, scores (B, E). PyTorch's default initial weights.

    Args:
        hidden: units of the hidden layer at ``width`` 1.
    """

    def __init__(
        self, experts: int, *, hidden: int, image_size: int, in_channels: int, normalize: Normalization, width: float
    ):
        super().__init__()
        units = scale_channels(hidden, width)
        self.normalize = make_normalize(normalize, in_channels)
        self.hidden = nn.Linear(in_channels * image_size**2, units)
        self.head = nn.Linear(units, experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.hidden(self.normalize(x).flatten(1))))
