"""The router's scores of each image, clean and attacked."""

import numpy as np
import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.evaluation.probes._images import Images
from moat.models.guard import class_name

PARAMETERS = ("setting", "images")


def collect(model: nn.Module, images: Images) -> dict[str, np.ndarray]:
    """``clean`` and ``attacked``: the router's scores, float32 (N, experts), before any softmax; ``label`` (N,).

    Raises:
        ConfigError: the model has no router.
    """
    if not hasattr(model, "route_logits"):
        raise ConfigError(f"a probe of kind routing needs a model with a router; {class_name(model)} has none")
    clean, attacked, labels = [], [], []
    for batch in images.batches(model):
        with torch.no_grad():
            clean.append(model.route_logits(batch.clean).float())
            attacked.append(model.route_logits(batch.attacked).float())
        labels.append(batch.labels)
    parts = {"clean": clean, "attacked": attacked, "label": labels}
    return {name: torch.cat(part).cpu().contiguous().numpy() for name, part in parts.items()}
