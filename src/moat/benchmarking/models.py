"""Nets and methods as trainings have them, freshly initialised: for counting and for measuring speed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import moat.methods
from moat.planning.macs import Net, build


def begin(net: Net, recipe: Mapping[str, Any], device: torch.device):
    """The method as its first epoch begins it, its needed runs replaced by random weights."""
    from moat.training.models import autocast

    needs = {need["name"]: Path() for need in recipe.get("needs", [])}
    model = build(net, needs).to(device, memory_format=torch.channels_last)
    method = moat.methods.get(net.method)(model, recipe, autocast=autocast(recipe, device))
    for optimizer in method.optimizers.values():
        for group in optimizer.param_groups:
            # Random labels teach nothing, and weights that diverge would end the measurement.
            group["lr"] = 1e-6
    method.train_mode()
    method.begin_epoch(0)
    return method
