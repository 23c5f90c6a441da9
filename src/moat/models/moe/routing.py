"""A batch sorted by the expert of each sample, once per forward pass, so that every expert works on one slice."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moat.base.errors import MoatError

# (expert, number of samples) in the order in which the samples lie; experts without samples are not in it.
Groups = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Sorting:
    """The order that brings the samples of each expert together.

    Attributes:
        order: positions (B,) in the batch of the sorted samples; samples of one expert keep their order.
        inverse: positions (B,) in the sorted batch of the batch's samples.
        groups: the slices of the sorted batch, one per expert that has samples.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    groups: Groups

    @classmethod
    def of(cls, route: torch.Tensor, experts: int, scores: torch.Tensor | None = None) -> "Sorting":
        """The sorting of a route (B,) int64, values from 0 to ``experts - 1``.

        The sizes of the groups are needed on the host, which is the only time that a forward pass waits for the
        device. ``scores`` (B, experts), where given, are checked for finiteness in the same transfer.

        Raises:
            MoatError: scores that are NaN or infinite; argmax would send all of them to expert 0 unnoticed.
            ValueError: an expert that does not exist.
        """
        counts = (route[:, None] == torch.arange(experts, device=route.device)).sum(0)
        bad = torch.zeros_like(counts[:1]) if scores is None else (~scores.isfinite()).any(1).sum()[None]
        *sizes, bad = torch.cat([counts, bad]).tolist()
        if bad:
            raise MoatError(f"the router's scores are not finite for {bad} of {len(route)} images")
        if sum(sizes) != len(route):
            raise ValueError(f"{len(route) - sum(sizes)} routes lie outside 0 to {experts - 1}")
        order = route.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return cls(order, inverse, tuple((e, size) for e, size in enumerate(sizes) if size) or ((0, 0),))

    def sort(self, x: torch.Tensor) -> torch.Tensor:
        """The samples of ``x`` (B, …) brought into the sorted order; gradients go the way back."""
        return _Permute.apply(x, self.order, self.inverse)

    def unsort(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`sort`."""
        return _Permute.apply(x, self.inverse, self.order)


class _Permute(torch.autograd.Function):
    """``x[order]``, whose gradient is ``gradient[inverse]``: a gather both ways, where indexing would scatter."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order, inverse)
        return _take(x, order)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        order, inverse = ctx.saved_tensors
        return _Permute.apply(gradient, inverse, order), None, None


def _take(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """``x[order]`` in the memory format of ``x``."""
    taken = x.index_select(0, order)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return taken.contiguous(memory_format=torch.channels_last)
    return taken


def straight_through(scores: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """The gate (B,) of each sample's selected expert: 1 in value, the selected score (B, experts) in gradient.

    Source: the one-hot of the selection in the forward pass, its gradient passed on unchanged. As the others'
    outputs do not appear in the result, only the selected score gets a gradient.
    """
    selected = scores.gather(1, route[:, None])[:, 0]
    return 1 + (selected - selected.detach())
