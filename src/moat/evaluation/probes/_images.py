"""The input of a probe: test images, clean and attacked, in batches."""

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
    """Test images and the attack setting of a probe.

    Attributes:
        x, y: uint8 (N, H, W, C) and labels (N,).
        indices: each image's row in the test split. The random start derives from it and the setting's name, so that a
            probe attacks an image exactly as the evaluation of the same setting does.
        name, attack: the attack setting; None for a probe that needs none.
    """

    x: torch.Tensor
    y: torch.Tensor
    indices: Sequence[int]
    batch_size: int
    name: str | None = None
    attack: Attack | None = None

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """All images, attacked on a fast copy of ``model``."""
        if self.attack is None:
            raise ConfigError("this probe compares clean with attacked images; give it a setting")
        device, target = device_of(model), None
        for start in range(0, len(self.x), self.batch_size):
            part = slice(start, start + self.batch_size)
            clean, labels = images(self.x[part], device), self.y[part].to(device, torch.int64)
            target = target or for_attack(model, clean)
            draws = None
            if self.attack.takes_generator:
                draws = [generator(0, 0, f"evaluate {self.name}", batch=index) for index in self.indices[part]]
            attacked = self.attack(target, clean.clone(), labels, draws)
            yield Batch(clean, project(attacked, clean, self.attack.eps, self.name), labels)
