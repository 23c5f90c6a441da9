"""A convolution whose filters are divided among experts, of which each sample uses one."""

import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.models.nets.pointwise import conv2d


class ChannelExpertConv2d(nn.Module):
    """Convolution without bias whose filters are divided among experts; each sample is convolved with those of one.

    Expert e owns the filters ``weight[e * out_channels : (e + 1) * out_channels]``.

    Source: the channel experts of Zhang et al., Robust Mixture-of-Expert Training for Convolutional Neural Networks,
    ICCV 2023. Their layer computes all experts and masks the output; this one computes the selected expert only.

    Args:
        in_channels: channels of the input; after another such layer, the ``out_channels`` of that layer.
        out_channels: filters of one expert.
        experts: number of experts; the weight is (experts * out_channels, in_channels, kernel_size, kernel_size).

    Raises:
        ConfigError: a size below 1 or a negative padding.
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
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming normal; the fan out is that of all experts together, as in the dense layer that they tile."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor, route: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Each sample's output (B, out_channels, H', W') of its own expert.

        Args:
            x: (B, in_channels, H, W).
            route: expert of each sample (B,), int64.
            gate: factor on each sample's output (B,), ones in value, which carries the straight-through gradient to
                the selected score (:func:`moat.models.moe.routing.straight_through`).

        Raises:
            ValueError: a route to an expert that does not exist.
        """
        samples = [(route == expert).nonzero()[:, 0] for expert in range(self.experts)]
        order = torch.cat(samples)
        if len(order) != len(route):
            raise ValueError(f"{len(route) - len(order)} routes lie outside 0 to {self.experts - 1}")
        outputs = [
            conv2d(x[chosen], filters, None, (self.stride,) * 2, (self.padding,) * 2)
            for chosen, filters in zip(samples, self.weight.split(self.out_channels), strict=True)
        ]
        y = torch.cat(outputs)[order.argsort()]
        return y if gate is None else y * gate.to(y.dtype).view(-1, 1, 1, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, experts={self.experts}, "
            f"stride={self.stride}, padding={self.padding}"
        )
