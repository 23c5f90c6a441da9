"""Twins of the mixtures' experts: one conversion of the images to channels last, and streams while a graph captures."""

import functools

import torch

from moat.kernels.streams import run_concurrently
from moat.models.moe.experts import Experts
from moat.models.moe.soe import SynergyOfExperts


class ConcurrentExperts(Experts):
    """Net by net: as one grouped convolution they are slower at all but toy widths."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.stack(run_concurrently([functools.partial(expert, x) for expert in self]))


class ConcurrentSynergyOfExperts(SynergyOfExperts):
    def answers(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        answers = run_concurrently([functools.partial(expert.answer, x) for expert in self.experts])
        logits, factors = zip(*answers, strict=True)
        return torch.stack(logits), torch.stack(factors)
