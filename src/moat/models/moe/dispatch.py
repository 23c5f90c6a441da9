"""Each sample through the one module that it is sent to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def dispatch(modules: Sequence[nn.Module], x: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """The output of each sample's own module, in the order of the batch ``x`` (B, …).

    A module runs on its own samples alone, and its batch norm sees those. A single sample has no statistics: it is
    computed with the running ones and does not change them.

    Args:
        route: number of the module of each sample (B,), int64.
    """
    samples = [(route == number).nonzero()[:, 0] for number in range(len(modules))]
    outputs = [_apply(module, x[chosen]) for module, chosen in zip(modules, samples, strict=True) if len(chosen)]
    return torch.cat(outputs)[torch.cat(samples).argsort()] if outputs else modules[0](x)


def _apply(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if len(x) > 1 or not module.training:
        return module(x)
    with _running_statistics(module):
        return module(x)


@contextmanager
def _running_statistics(module: nn.Module) -> Iterator[None]:
    module.eval()
    try:
        yield
    finally:
        module.train()
