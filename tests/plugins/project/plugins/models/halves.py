"""A mixture whose experts see one half of the image each, the left or the right, weighted by a linear router."""

import torch
from torch import nn
from torch.nn import functional as F

from moat.models import build

PARAMETERS = {"temperature": {"type": "number", "exclusiveMinimum": 0, "description": "of the router's softmax"}}


class Halves(nn.Module):
    """F(x) = sum_i w_i(x) z_i(x_i): x_i the half that expert i sees, the other one black."""

    def __init__(self, arch: str, num_classes: int, *, temperature: float, **net):
        super().__init__()
        self.temperature = temperature
        self.experts = nn.ModuleList(build(arch, num_classes, **net) for _ in range(2))
        self.router = nn.Sequential(nn.Flatten(), nn.Linear(net["in_channels"] * net["image_size"] ** 2, 2))

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.router(x)

    def each(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (2, B, K) of the experts."""
        half = x.shape[3] // 2
        left, right = F.pad(x[..., :half], (0, x.shape[3] - half)), F.pad(x[..., half:], (half, 0))
        return torch.stack([self.experts[0](left), self.experts[1](right)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = F.softmax(self.route_logits(x) / self.temperature, 1)
        return (weights.T[..., None] * self.each(x)).sum(0)

    def attack_views(self) -> dict[str, nn.Module]:
        return {"left": Half(self, 0), "right": Half(self, 1)}


class Half(nn.Module):
    """One expert alone."""

    def __init__(self, model: Halves, index: int):
        super().__init__()
        self.model, self.index = model, index
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.each(x)[self.index]


MIXTURE = Halves
