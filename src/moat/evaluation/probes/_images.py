"""Test images for a probe, clean and attacked, batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moat.attacks import for_attack
from moat.attacks.parts.setting import Attack
from moat.base.errors import ConfigError
from moat.data.seeding import generator
from moat.evaluation.runner import device_of, images, project


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) in [0,1], attacked images of the same shape, labels (B,)."""

    clean: torch.Tensor
    attacked: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Images:
    """
    Attributes:
        x, y: uint8 (N, H, W, C) and labels (N,).
        indices: each image's number in the test split; with the setting's name it decides the random start, so that
            a probe attacks an image exactly as the evaluation of the same setting does.
        name: of the attack setting; None for a probe that needs no attack.
    """

    x: torch.Tensor
    y: torch.Tensor
    indices: Sequence[int]
    batch_size: int
    name: str | None = None
    attack: Attack | None = None

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """All images, attacked with a copy of ``model`` that is made for it."""
        if self.attack is None:
            raise ConfigError("this probe compares clean with attacked images; give it a setting")
        device, target = device_of(model), None
        for start in range(0, len(self.x), self.batch_size):
            part = slice(start, start + self.batch_size)
            clean, labels = images(self.x[part], device), self.y[part].to(device, torch.int64)
            target = target or for_attack(model, clean)
            yield Batch(clean, self._attacked(target, clean, labels, self.indices[part]), labels)

    def _attacked(self, target: nn.Module, clean, labels, indices: Sequence[int]) -> torch.Tensor:
        draws = None
        if self.attack.takes_generator:
            draws = [generator(0, 0, f"evaluate {self.name}", batch=index) for index in indices]
        attacked = self.attack(target, clean.clone(), labels, draws)
        return project(attacked, clean, self.attack.eps, self.name)
