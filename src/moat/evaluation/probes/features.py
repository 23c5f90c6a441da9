"""Penultimate features of each image, clean and attacked, and what the model takes it for."""

import numpy as np
import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.evaluation.probes._images import Images
from moat.evaluation.probes._parts import networks
from moat.evaluation.runner import classify

TAKES = ("setting", "images")


def collect(model: nn.Module, images: Images) -> dict[str, np.ndarray]:
    """``clean``, ``attacked``: float32 (N, D); ``clean_predicted``, ``attacked_predicted`` and ``label`` (N,).

    The features of a mixture of full nets are those of its experts, side by side.

    Raises:
        ConfigError: a model that tells no features.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in images.batches(model):
        parts.setdefault("label", []).append(batch.labels)
        for name, x in (("clean", batch.clean), ("attacked", batch.attacked)):
            parts.setdefault(name, []).append(_features(model, x))
            parts.setdefault(f"{name}_predicted", []).append(classify(model, x).argmax(1))
    return {name: torch.cat(part).cpu().contiguous().numpy() for name, part in parts.items()}


@torch.no_grad()
def _features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    nets = networks(model)
    if not all(hasattr(net, "features") for net in nets):
        raise ConfigError(f"a probe of kind features needs nets with features(x); {type(nets[0]).__name__} has none")
    return torch.cat([net.features(x).float() for net in nets], 1)
