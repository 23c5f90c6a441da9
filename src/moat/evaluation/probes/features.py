"""The penultimate features and the predictions of each image, clean and attacked."""

import numpy as np
import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.evaluation.probes._images import Images
from moat.evaluation.probes._networks import networks
from moat.evaluation.runner import classify
from moat.models.outputs import predicted_class

PARAMETERS = ("setting", "images")


def collect(model: nn.Module, images: Images) -> dict[str, np.ndarray]:
    """``clean``, ``attacked``: float32 (N, D); ``clean_predicted``, ``attacked_predicted`` and ``label`` (N,).

    The features of a mixture of full nets are those of its experts, concatenated.

    Raises:
        ConfigError: a net without ``features(x)``.
    """
    nets = networks(model)
    if not all(hasattr(net, "features") for net in nets):
        raise ConfigError(f"a probe of kind features needs nets with features(x); {type(nets[0]).__name__} has none")
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in images.batches(model):
        parts.setdefault("label", []).append(batch.labels)
        for name, x in (("clean", batch.clean), ("attacked", batch.attacked)):
            with torch.no_grad():
                parts.setdefault(name, []).append(torch.cat([net.features(x).float() for net in nets], 1))
            parts.setdefault(f"{name}_predicted", []).append(predicted_class(classify(model, x)))
    return {name: torch.cat(part).cpu().contiguous().numpy() for name, part in parts.items()}
