"""A convolution whose filters are divided among experts, of which each sample uses one."""

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError
from moat.kernels.convolution import conv2d
from moat.kernels.packed import PackedWeight
from moat.models.moe.routing import Groups, Sorting


class ChannelExpertConv2d(nn.Module):
    """Convolution without bias, with one disjoint group of filters per expert.

    Expert e owns the filters ``weight[e * out_channels : (e + 1) * out_channels]``; a sample gets the output of its
    expert alone, and no other expert is computed for it.

    Source: the channel experts of Zhang et al., Robust Mixture-of-Expert Training for Convolutional Neural Networks,
    ICCV 2023, whose layer computes every expert and masks.

    Args:
        in_channels: of the input; behind another such layer, the channels of one expert.
        out_channels: of one expert.
        experts: how many; the weight is (experts * out_channels, in_channels, kernel_size, kernel_size).

    Raises:
        ConfigError: a size below 1, a negative padding.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, experts: int, stride: int = 1, padding: int = 0
    ):
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        for key, value in (sizes | {"experts": experts, "stride": stride}).items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{key}: {value!r} is not allowed; a whole number from 1")
        if not isinstance(padding, int) or padding < 0:
            raise ConfigError(f"padding: {padding!r} is not allowed; a whole number from 0")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.experts, self.stride, self.padding = experts, stride, padding
        self.weight = nn.Parameter(torch.empty(experts * out_channels, in_channels, kernel_size, kernel_size))
        # None, but in a copy into which a batch norm is folded: (out_channels,), shared by the experts.
        self.register_parameter("bias", None)
        self.packed: list[PackedWeight] = []
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming normal over the fan out of all experts together, as of the dense layer that they tile."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def pack(self) -> None:
        """Keep each expert's filters packed from now on, where that pays: in a copy whose weight needs no gradient."""
        packed = [PackedWeight((self.stride,) * 2, (self.padding,) * 2) for _ in range(self.experts)]
        self.packed = packed if packed[0].pays(self.weight[: self.out_channels]) else []

    def forward(self, x: torch.Tensor, route: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """The selected experts' outputs (B, out_channels, H', W') for samples in any order.

        Args:
            x: (B, in_channels, H, W).
            route: expert of each sample (B,), int64.
            gate: (B,), ones in value. It gets the gradient of a factor on the output: the inner product of the
                incoming gradient with the selected expert's output.

        Raises:
            ValueError: a route to an expert that does not exist.
        """
        sorting = Sorting.of(route, self.experts)
        gate = None if gate is None else sorting.sort(gate)
        return sorting.unsort(self.forward_sorted(sorting.sort(x), sorting.groups, gate))

    def forward_sorted(
        self,
        x: torch.Tensor,
        groups: Groups,
        gate: torch.Tensor | None = None,
        *,
        residual: torch.Tensor | None = None,
        relu: bool = False,
        masked: bool = False,
        behind: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """:meth:`forward` for a sorted batch: one convolution per slice, no gather, no waiting for the device.

        Without a gate it also adds a ``residual`` of the output's shape and goes through relu, in that order.

        Args:
            masked, behind: as ``masked`` and ``gates`` of :meth:`moat.kernels.packed.PackedWeight.conv2d`, where
                :meth:`takes_gates`.
        """
        # split, not slices: its backward writes the gradient of the whole weight once, zeros for unused experts.
        filters = self.weight.split(self.out_channels)
        sizes = [size for _, size in groups]
        parts = x.split(sizes) if len(groups) > 1 else (x,)
        residuals = [None] * len(groups) if residual is None else residual.split(sizes)
        gates = [None] * len(groups) if behind is None else [(each, behind[1]) for each in behind[0].split(sizes)]
        more = ({"relu": relu, "masked": masked, "gates": each} for each in gates)
        outputs = [
            self._convolve(part, expert, filters[expert], added, **each)
            for part, (expert, _), added, each in zip(parts, groups, residuals, more, strict=True)
        ]
        y = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return y if gate is None else _Gated.apply(y, gate, self.bias)

    def takes_gates(self, x: torch.Tensor, groups: Groups) -> bool:
        """Whether this convolution computes the gates' gradient along with that of ``x``."""
        filters = self.weight[: self.out_channels]
        return bool(self.packed) and all(self.packed[0].takes_gates(x[:size], filters) for _, size in groups)

    def _convolve(self, x, expert: int, weight: torch.Tensor, residual: torch.Tensor | None, **more):
        if self.packed:
            return self.packed[expert].conv2d(x, weight, self.bias, residual=residual, **more)
        how = (self.stride,) * 2, (self.padding,) * 2
        ours = self.training and self.bias is None
        y = conv2d(x, weight, *how) if ours else F.conv2d(x, weight, self.bias, *how)
        y = y if residual is None else y + residual
        return F.relu(y) if more["relu"] else y

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, experts={self.experts}, "
            f"stride={self.stride}, padding={self.padding}"
        )


class _Gated(torch.autograd.Function):
    """``(y - bias) * gate + bias`` for a gate of ones: y itself, and backwards the gradient that the factor would get.

    A bias is what a folded batch norm adds behind the factor; it must not need a gradient.
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
    """``relu(z)`` between two channel-expert convolutions in evaluation mode, with the gradient of both their gates.

    Call it, instead of giving ``gate`` to the convolutions, where ``z`` (B, C, H, W) comes from the first, whose
    ``bias`` (C,) is a folded batch norm's, and goes nowhere but through here into the second, which has none before its
    gate. A convolution is linear, so the second's inner product of gradient and output is that of its input; and the
    first's is the same but for the bias, for relu changes neither gradient nor value where it passes. So one inner
    product is enough for two layers, and no output has to be kept for it.

    ``z`` is overwritten.
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
    """What so many gates (B,) get together that all let ``y`` pass; only the first stands before a ``bias`` in it."""
    products = gates * _inner_products(gradient, y)
    return products if bias is None else products - gradient.sum((2, 3)) @ bias.to(gradient.dtype)


def _inner_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sum_{c,h,w} a * b of each sample (B,), without a product in memory, whichever format both lie in."""
    if b.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    rows, columns = a.reshape(len(a), 1, -1), b.reshape(len(b), -1, 1)
    return torch.bmm(rows, columns)[:, 0, 0]
