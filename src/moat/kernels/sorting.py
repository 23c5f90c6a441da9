"""A batch sorted by expert once per forward pass, so that every expert of every layer works on one contiguous slice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from moat.base.errors import MoatError

# (expert, number of samples) in the order of the sorted batch; experts without samples are left out. The twins of an
# MoE-CNN's modules take these groups in place of a route.
Groups = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Sorting:
    """The permutation that brings the samples of each expert together.

    Attributes:
        order: position (B,) in the batch of each sample of the sorted batch; stable within an expert.
        inverse: position (B,) in the sorted batch of each sample of the batch.
        groups: the slices of the sorted batch.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    groups: Groups

    @classmethod
    def of(cls, route: torch.Tensor, experts: int, scores: torch.Tensor | None = None) -> "Sorting":
        """The sorting of a route (B,), int64, values from 0 to ``experts - 1``.

        The group sizes are needed on the host: this is the only device synchronisation of a forward pass. ``scores``
        (B, experts), if given, are checked for finiteness in the same transfer.

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
        """The samples of ``x`` (B, …) in sorted order."""
        return _Permute.apply(x, self.order, self.inverse)

    def unsort(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`sort`."""
        return _Permute.apply(x, self.inverse, self.order)


def sort_and_call(
    module: Callable[..., torch.Tensor],
    x: torch.Tensor,
    route: torch.Tensor,
    gate: torch.Tensor | None = None,
    *,
    experts: int,
) -> torch.Tensor:
    """``module(x, groups, gate)`` on the sorted batch, its result in the order of the batch: for a module by itself."""
    sorting = Sorting.of(route, experts)
    gate = None if gate is None else sorting.sort(gate)
    return sorting.unsort(module(sorting.sort(x), sorting.groups, gate))


class _Permute(torch.autograd.Function):
    """``x[order]``, whose gradient is ``gradient[inverse]``: a gather both ways, where indexing would scatter."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order, inverse)
        taken = x.index_select(0, order)
        # index_select does not keep channels last.
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return taken.contiguous(memory_format=torch.channels_last)
        return taken

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        order, inverse = ctx.saved_tensors
        return _Permute.apply(gradient, inverse, order), None, None
