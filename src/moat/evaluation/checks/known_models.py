"""Models whose robustness is known, on which the checks and the attacks are tried."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from moat.evaluation.checks.stages import stage
from moat.evaluation.evidence import Budget, Evidence

EPS = 8 / 255
EXAMPLES = 64
IMAGE = (3, 8, 8)


class Linear(nn.Module):
    """Two logits ∓w·(x - 1/2). Robust at an image with label t = ±1 exactly if t w·(x - 1/2) > eps · |w|_1."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lead = ((x - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([-lead, lead], 1)


class Convolution(nn.Module):
    """Two logits ∓readout·pool(relu(conv(x - 1/2)))."""

    def __init__(self, filters: torch.Tensor, readout: torch.Tensor):
        super().__init__()
        self.register_buffer("filters", filters)
        self.register_buffer("readout", readout)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.conv2d(x - 0.5, self.filters, padding=1).relu(), 2).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lead = self.features(x) @ self.readout
        return torch.stack([-lead, lead], 1)


class Masked(nn.Module):
    """The same function as ``net``, and so equally robust, without a gradient."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.detach())


def known_problem(device: torch.device) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    """A linear model, and images of which exactly half are robust at :data:`EPS` and none at twice that radius.

    The distances of the images from the decision boundary are evenly spread over 0 to 2 eps.
    """
    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(IMAGE, generator=draw) + 0.5
    weight *= torch.randint(0, 2, IMAGE, generator=draw) * 2 - 1
    y = torch.arange(EXAMPLES) % 2
    distance = 2 * EPS * (torch.randperm(EXAMPLES, generator=draw) + 0.5) / EXAMPLES
    side = (2.0 * y - 1) * distance
    x = 0.5 + side[:, None, None, None] * weight.sign()
    return Linear(weight / weight.abs().sum() * 20).to(device), x, y


def undefended_net(device: torch.device) -> tuple[Convolution, torch.Tensor, torch.Tensor]:
    """A convolutional net fitted to 64 images of two classes, none of which is robust at :data:`EPS`.

    Its filters are random and its readout solves the ridge regression of the labels. Square breaks 0 % of the images
    on 100 queries, 50 % on 300 and 100 % on 1,000.
    """
    draw = torch.Generator().manual_seed(0)
    filters = torch.randn(16, IMAGE[0], 3, 3, generator=draw)
    pattern = torch.randn(IMAGE, generator=draw).sign()
    y = torch.arange(EXAMPLES) % 2
    side = 2.0 * y - 1
    noise = torch.randn(EXAMPLES, *IMAGE, generator=draw)
    x = (0.5 + 0.1 * noise + 0.02 * side[:, None, None, None] * pattern).clamp(0, 1)
    features = Convolution(filters, torch.empty(0)).features(x).double()
    kernel = features @ features.T + 0.1 * torch.eye(EXAMPLES, dtype=torch.float64)
    readout = 5 * features.T @ torch.linalg.solve(kernel, side.double())
    return Convolution(filters, readout.float()).to(device), x, y


@functools.cache
def masked_net(device: torch.device, budget: Budget) -> Evidence:
    """The undefended net with its gradient cut, measured once."""
    net, x, y = undefended_net(device)
    return Evidence(Masked(net), x, y, EPS, EXAMPLES, 0, budget=budget)


def broken_without_gradients(device: torch.device, budget: Budget) -> float:
    """The share of that net's images that Square breaks with the budget's queries: none is robust."""
    return len(stage(masked_net(device, budget), "black box").misclassified["square"]) / EXAMPLES
