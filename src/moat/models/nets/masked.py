"""Structured pruning by learned masks: each convolution keeps a fixed number of its filters, by their scores.

Source: Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, arXiv 2002.10509, for scores, their
initialisation and the straight-through gradient; whole filters instead of single weights.
"""

import math

import torch
from torch import nn

from moat.models.nets.pointwise import conv2d


class MaskedConv2d(nn.Conv2d):
    """A convolution whose filters (output channels) with the smallest scores are zero.

    ``scores`` has the shape of ``weight``; a filter's importance is the sum of its absolute scores. The whole layer is
    computed: a mask saves no time.

    Args:
        like: the convolution whose shape, options and weights this one takes over.
        keep_ratio: fraction of the filters that are kept, in (0, 1].
    """

    def __init__(self, like: nn.Conv2d, keep_ratio: float):
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,
            stride=like.stride,
            padding=like.padding,
            dilation=like.dilation,
            groups=like.groups,
            bias=like.bias is not None,
            padding_mode=like.padding_mode,
        )
        self.load_state_dict(like.state_dict())
        self.num_kept = kept_filters(like.out_channels, keep_ratio)
        self.scores = nn.Parameter(torch.empty_like(self.weight))
        self.reset_scores()

    @torch.no_grad()
    def reset_scores(self) -> None:
        """sqrt(6 / fan in) * W / max |W|: initially the filters with the largest weights are kept."""
        self.scores.copy_(math.sqrt(6 / self.weight[0].numel()) * self.weight / self.weight.abs().max())

    def kept(self) -> torch.Tensor:
        """Which filters are kept: bool (out_channels,), ``num_kept`` of them true."""
        # In float64, so that the choice does not depend on the order of summation, which differs between devices.
        importance = self.scores.detach().double().abs().sum((1, 2, 3))
        chosen = importance.topk(self.num_kept).indices
        return torch.zeros_like(importance, dtype=torch.bool).scatter(0, chosen, True)

    def mask(self) -> torch.Tensor:
        """0 or 1 in the shape of ``weight``; straight-through: its gradient reaches the absolute scores unchanged."""
        size = self.scores.abs()
        return self.kept().view(-1, 1, 1, 1).to(size.dtype) + (size - size.detach())

    def effective_weight(self) -> torch.Tensor:
        """The weight with the filters that are not kept at zero."""
        return self.weight * self.mask()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str):
            return conv2d(x, weight, bias, self.stride, self.padding, self.dilation)
        return super()._conv_forward(x, weight, bias)


def kept_filters(channels: int, keep_ratio: float) -> int:
    """``channels`` minus floor((1 - keep_ratio) * channels); at least 1 for a ``keep_ratio`` above 0."""
    # 1e-9 undoes the rounding of 1 - 0.9, so that a ratio of 0.9 drops 1 of 10.
    return channels - int((1 - keep_ratio) * channels + 1e-9)


def mask_filters(net: nn.Module, keep_ratio: float) -> nn.Module:
    """Replace every convolution of ``net`` but the first one, the stem, by a :class:`MaskedConv2d`."""
    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    for name in convolutions[1:]:
        parent, _, attribute = name.rpartition(".")
        setattr(net.get_submodule(parent), attribute, MaskedConv2d(net.get_submodule(name), keep_ratio))
    return net


def masked_layers(net: nn.Module) -> list[MaskedConv2d]:
    """The masked convolutions of a net, from input to output."""
    return [module for module in net.modules() if isinstance(module, MaskedConv2d)]
