"""Shared by the mixtures of two trained nets that train nothing: a few numbers are fitted to the held-out images."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from moat.attacks.parts.setting import Attack
from moat.data.seeding import generator
from moat.methods._pretrained import PretrainedExperts
from moat.methods._untrained import Untrained


class FittedMixture(Untrained, PretrainedExperts):
    """A mixture of an accurate net and a robust one, both frozen. :meth:`fit` is called once, in the first epoch."""

    PARAMETERS = {
        "fit.eps": {"type": "distance", "description": "radius of the attack that the mixture is fitted under"},
        "fit.step_size": {"type": "distance", "description": "of each of its steps"},
        "fit.steps": {"type": "integer", "minimum": 1, "description": "its steps; no scale cuts them by itself"},
        "fit.images": {"type": "integer", "minimum": 1, "description": "at most so many of the held-out images"},
    }

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        model.experts.requires_grad_(False)
        super().__init__(model, recipe, autocast=autocast)

    def end_epoch(self, epoch: int, accuracy: Callable[[Attack], float]) -> dict[str, float]:
        # Later epochs find what the first one found.
        return self.fit(*self._held_out(accuracy)) if epoch == 0 else {}

    def fit(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        """Set the mixture's numbers by held-out images ``x`` (B, C, H, W) with labels ``y``; returns what is logged."""
        raise NotImplementedError(f"{type(self).__name__} has no fit()")

    def draws(self, purpose: str, x: torch.Tensor) -> torch.Generator:
        """The random numbers of the fit, the same for every seed: only the nets differ."""
        return generator(0, 0, purpose, device=x.device)

    def _held_out(self, accuracy: Callable[[Attack], float]) -> tuple[torch.Tensor, torch.Tensor]:
        """The images by which the best epoch is chosen: what an attack on them is given."""
        batches = []

        def look(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            batches.append((x, y))
            return x

        accuracy(Attack(look, eps=None, steps=0, takes_generator=False))
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        count = self.recipe["fit"]["images"]
        return images[:count], labels[:count]
