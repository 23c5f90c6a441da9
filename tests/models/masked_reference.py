"""The MoE-CNN as its source computes it: every expert on every image, a mask, and a gather of the selected channels."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe import ChannelExpertConv2d
from moat.models.moe.norms import ExpertBatchNorm2d

torch.set_num_threads(1)


def masked_conv(conv: ChannelExpertConv2d, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """All experts on all samples; a one-hot with straight-through gradient; the selected channels gathered."""
    y = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)
    y = y.view(len(x), conv.experts, conv.out_channels, *y.shape[2:])
    route = scores.argmax(1)
    one_hot = F.one_hot(route, conv.experts) + (scores - scores.detach())
    return (y * one_hot[:, :, None, None, None])[torch.arange(len(x)), route]


def masked_norm(norm: ExpertBatchNorm2d, x: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    for expert in route.unique().tolist():
        y[route == expert] = norm.experts[expert](x[route == expert])
    return y


class Masked(nn.Module):
    """A copy of an MoE-CNN that computes all experts of every layer."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.net = copy.deepcopy(model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(x, self.net.router(x))

    def classify(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for module in self.net.trunk.modules():
            if isinstance(module, ChannelExpertConv2d):
                module.forward = lambda x, route, gate, conv=module: masked_conv(conv, x, scores)
            elif isinstance(module, ExpertBatchNorm2d):
                module.forward = lambda x, route, norm=module: masked_norm(norm, x, route)
        return self.net.head(self.net.trunk(self.net.normalize(x), scores.argmax(1), None))
