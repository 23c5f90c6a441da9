"""Twins of the MoE-CNN and its blocks, which sort the batch by expert once and pass its groups on in place of a route.

Trunks and the blocks of a training need no twin: they hand on whatever they are given as ``route``.
"""

import torch
from torch import nn

from moat.kernels.channel_experts import FoldedChannelExpertConv2d, gated_relu
from moat.kernels.sorting import Groups, Sorting, sort_and_call
from moat.models import MoeCnn
from moat.models.moe.backbones import MoeBasicBlock, MoePreActBlock, MoeResNetTrunk, MoeWideTrunk
from moat.models.moe.norms import ExpertBatchNorm2d, SharedBatchNorm2d
from moat.models.moe.routing import straight_through
from moat.models.nets.pointwise import PixelsFirstConv2d

# Trunks, blocks and norms that hand on the groups of a sorted batch in place of a route, or do not look at it.
TRUNKS_AND_BLOCKS = (MoeResNetTrunk, MoeWideTrunk, MoeBasicBlock, MoePreActBlock)
HAND_ON_GROUPS = (*TRUNKS_AND_BLOCKS, SharedBatchNorm2d, PixelsFirstConv2d)
# (convolution, batch norm) by attribute of a block: the norm uses the convolution's output, and nothing else does.
FOLDABLE = {MoeBasicBlock: (("conv1", "bn1"), ("conv2", "bn2")), MoePreActBlock: (("conv1", "bn2"),)}


class SortedMoeCnn(MoeCnn):
    """Sorts the batch by expert, with one device synchronisation per forward pass."""

    @staticmethod
    def convert(module: nn.Module) -> None:
        """Turn an MoE-CNN into one of these, unless its trunk has modules that may need a route."""
        if type(module) is MoeCnn and all(map(_needs_no_route, module.trunk.modules())):
            module.__class__ = SortedMoeCnn

    def _features(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        route = scores.argmax(1)
        sorting = Sorting.of(route, self.experts, scores.detach())
        gate = sorting.sort(straight_through(scores, route)) if scores.requires_grad else None
        x = self.normalize(sorting.sort(x))
        if self.training:
            # Batch norm takes its statistics over the whole batch.
            return sorting.unsort(self.trunk(x, sorting.groups, gate))
        # In evaluation mode samples do not interact: each expert's images go through the trunk as one narrow dense net.
        sizes = [size for _, size in sorting.groups]
        gates = [None] * len(sizes) if gate is None else gate.split(sizes)
        parts = zip(x.split(sizes), sorting.groups, gates, strict=True)
        return sorting.unsort(torch.cat([self.trunk(part, [group], gate) for part, group, gate in parts]))


class SortedExpertBatchNorm2d(ExpertBatchNorm2d):
    """``route`` may be the groups of a sorted batch."""

    def forward(self, x: torch.Tensor, route: torch.Tensor | Groups, gate: None = None) -> torch.Tensor:
        if isinstance(route, torch.Tensor):
            return sort_and_call(self, x, route, experts=len(self.experts))
        parts = x.split([size for _, size in route])
        return torch.cat([self.normalize(expert, part) for (expert, _), part in zip(route, parts, strict=True)])


class FoldedMoeBasicBlock(MoeBasicBlock):
    """In a copy for attacks, both batch norms folded: sum and relus are computed by the convolutions where packed."""

    def forward(self, x: torch.Tensor, route: torch.Tensor | Groups, gate: torch.Tensor | None) -> torch.Tensor:
        if isinstance(route, torch.Tensor):
            return sort_and_call(self, x, route, gate, experts=self.conv1.experts)
        y, gates = self._between(x, route, gate)
        return self.conv2.convolve(y, route, residual=self.shortcut(x), relu=True, gates=gates)

    def _between(self, x: torch.Tensor, groups: Groups, gate: torch.Tensor | None):
        """The input of the second convolution, and the gates whose gradient that one has to compute."""
        if gate is None:
            return self.conv1.convolve(x, groups, relu=True), None
        if not (self.conv1.packed and self.conv2.packed):
            return gated_relu(self.conv1.convolve(x, groups), gate, self.conv1.bias), None
        y = self.conv1.convolve(x, groups, relu=True, gradient_is_masked=True)
        if self.conv2.supports_gates(y, groups):
            return y, (gate, self.conv1.bias)
        # A clone: the first convolution may have kept its output for PyTorch's relu.
        return gated_relu(y.clone(), gate, self.conv1.bias), None

    @staticmethod
    def convert(module: nn.Module) -> None:
        """Turn a basic block whose batch norms are both folded into one of these; other modules stay as they are."""
        if type(module) is MoeBasicBlock and all(map(_is_folded, (module.conv1, module.conv2))):
            module.__class__ = FoldedMoeBasicBlock


def _needs_no_route(module: nn.Module) -> bool:
    """Whether it is a twin, one of the definitions that work with groups, or a module of PyTorch's."""
    return type(module) in HAND_ON_GROUPS or type(module).__module__.startswith(("moat.kernels.", "torch.nn."))


def _is_folded(convolution: nn.Module) -> bool:
    return isinstance(convolution, FoldedChannelExpertConv2d) and convolution.bias is not None
