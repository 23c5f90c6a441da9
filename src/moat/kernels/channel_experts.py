"""Twins of :class:`~moat.models.ChannelExpertConv2d`: one convolution per expert on a slice of the sorted batch.

The gate is ones in value, so no output is multiplied by it: its gradient, the inner product of output and incoming
gradient, is computed in the backward pass alone.
"""

import torch
from torch import nn
from torch.nn import functional as F

from moat.kernels.convolution import conv2d
from moat.kernels.packed import PackedWeight
from moat.kernels.sorting import Groups, sort_and_call
from moat.models import ChannelExpertConv2d


class SortedChannelExpertConv2d(ChannelExpertConv2d):
    """In training mode, or evaluated as it is. ``route`` may be the groups of a sorted batch."""

    def forward(self, x: torch.Tensor, route: torch.Tensor | Groups, gate: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(route, torch.Tensor):
            return sort_and_call(self, x, route, gate, experts=self.experts)
        how = (self.stride,) * 2, (self.padding,) * 2
        # split, not slices: its backward writes the gradient of the whole weight once, with zeros for unused experts.
        filters = self.weight.split(self.out_channels)
        y = _joined([
            conv2d(part, filters[expert], *how) if self.training else F.conv2d(part, filters[expert], None, *how)
            for part, (expert, _) in zip(_parts(x, route), route, strict=True)
        ])  # fmt: skip
        return y if gate is None else Gated.apply(y, gate, None)


class FoldedChannelExpertConv2d(ChannelExpertConv2d):
    """In a copy for attacks: frozen, filters packed where that is faster, perhaps with a folded batch norm.

    Attributes:
        bias: of a folded batch norm (out_channels,), shared by the experts and added after the gate; else None.
        packed: one per expert, or none where packing is not faster.
    """

    packed: list[PackedWeight]

    @staticmethod
    def convert(module: nn.Module) -> None:
        """Turn a channel-expert convolution into one of these, without bias; other modules stay as they are."""
        if type(module) in (ChannelExpertConv2d, SortedChannelExpertConv2d):
            module.__class__ = FoldedChannelExpertConv2d
            module.register_parameter("bias", None)
            module.packed = []

    def pack(self) -> None:
        """Pack each expert's filters from now on, if that is faster; the weight must need no gradient."""
        packed = [PackedWeight((self.stride,) * 2, (self.padding,) * 2) for _ in range(self.experts)]
        self.packed = packed if packed[0].is_faster(self.weight[: self.out_channels]) else []

    def forward(self, x: torch.Tensor, route: torch.Tensor | Groups, gate: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(route, torch.Tensor):
            return sort_and_call(self, x, route, gate, experts=self.experts)
        y = self.convolve(x, route)
        return y if gate is None else Gated.apply(y, gate, self.bias)

    def convolve(
        self,
        x: torch.Tensor,
        groups: Groups,
        *,
        residual: torch.Tensor | None = None,
        relu: bool = False,
        gradient_is_masked: bool = False,
        gates: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """:meth:`forward` without its own gate, plus ``residual``, through relu if asked, in this order.

        Args:
            gradient_is_masked, gates: as in :meth:`moat.kernels.packed.PackedWeight.conv2d`, if :meth:`supports_gates`.
        """
        filters, sizes = self.weight.split(self.out_channels), [size for _, size in groups]
        residuals = [None] * len(groups) if residual is None else residual.split(sizes)
        of_parts = [None] * len(groups) if gates is None else [(gate, gates[1]) for gate in gates[0].split(sizes)]
        outputs = []
        for part, (expert, _), added, gate in zip(_parts(x, groups), groups, residuals, of_parts, strict=True):
            if self.packed:
                after = {"residual": added, "relu": relu, "gradient_is_masked": gradient_is_masked, "gates": gate}
                y = self.packed[expert].conv2d(part, filters[expert], self.bias, **after)
            else:
                y = F.conv2d(part, filters[expert], self.bias, self.stride, self.padding)
                y = y if added is None else y + added
                y = F.relu(y) if relu else y
            outputs.append(y)
        return _joined(outputs)

    def supports_gates(self, x: torch.Tensor, groups: Groups) -> bool:
        """Whether :meth:`convolve` takes ``gates`` and computes their gradient along with that of ``x``."""
        filters = self.weight[: self.out_channels]
        return bool(self.packed) and all(self.packed[0].supports_gates(x[:size], filters) for _, size in groups)


def _parts(x: torch.Tensor, groups: Groups) -> tuple[torch.Tensor, ...]:
    return x.split([size for _, size in groups]) if len(groups) > 1 else (x,)


def _joined(outputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class Gated(torch.autograd.Function):
    """``(y - bias) * gate + bias`` for a gate of ones: y itself; backward gives the gate the gradient of that factor.

    The bias of a folded batch norm is added after the gate; it must not need a gradient.
    """

    @staticmethod
    def forward(ctx, y: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(y)
        ctx.bias = bias
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        if not ctx.needs_input_grad[1]:
            return gradient, None, None
        (y,) = ctx.saved_tensors
        return gradient, _gate_gradient(gradient, y, ctx.bias), None


def gated_relu(z: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``relu(z)`` between two folded channel-expert convolutions, with the gradient of both their gates.

    For ``z`` (B, C, H, W) from a convolution with the folded ``bias`` (C,), whose relu is used by the second
    convolution alone, which has no bias before its gate. Then neither convolution takes the gate. A convolution is
    linear: the inner product of the second one's output and gradient equals that of its input and the input's
    gradient. The first one's differs from it by the bias only, because relu changes neither value nor gradient where
    it passes. So one inner product serves both layers, and no output has to be kept for it.

    Overwrites ``z``.
    """
    return _GatedRelu.apply(z, gate, bias)


class _GatedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(z)
        z.relu_()
        ctx.save_for_backward(z)
        ctx.bias = bias
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        (a,) = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, a, 0)
        return gradient, _gate_gradient(gradient, a, ctx.bias, 2) if ctx.needs_input_grad[1] else None, None


def _gate_gradient(gradient: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, gates: int = 1) -> torch.Tensor:
    """The summed gradient (B,) of ``gates`` factors on ``y``, the first of which is applied before ``bias``."""
    products = gates * _inner_products(gradient, y)
    return products if bias is None else products - gradient.sum((2, 3)) @ bias.to(gradient.dtype)


def _inner_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sum_{c,h,w} a * b of each sample (B,), in either memory format, without writing the products to memory."""
    if b.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    rows, columns = a.reshape(len(a), 1, -1), b.reshape(len(b), -1, 1)
    return torch.bmm(rows, columns)[:, 0, 0]
