"""The weights of one layer, with zeros for pruned ones."""

import numpy as np
from torch import nn

from moat.base.errors import ConfigError
from moat.evaluation.probes._images import Images
from moat.models.moe import ChannelExpertConv2d

PARAMETERS = ("layer",)


def collect(model: nn.Module, images: Images, *, layer: int | str = 2) -> dict[str, np.ndarray]:
    """``weights``: float32, in the layer's shape.

    Args:
        layer: the number of a convolution, counted from the input starting at 1, or the dotted name of a layer.

    Raises:
        ConfigError: the model has no such layer; lists those it has.
    """
    chosen = _find(model, layer)
    weights = chosen.effective_weight() if hasattr(chosen, "effective_weight") else chosen.weight
    return {"weights": weights.detach().float().cpu().contiguous().numpy()}


def _find(model: nn.Module, layer: int | str) -> nn.Module:
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim > 1
    }
    convolutions = [module for module in layers.values() if isinstance(module, (nn.Conv2d, ChannelExpertConv2d))]
    if isinstance(layer, int) and 1 <= layer <= len(convolutions):
        return convolutions[layer - 1]
    if layer in layers:
        return layers[layer]
    raise ConfigError(
        f"layer: {layer!r} is not allowed; a convolution's number from 1 to {len(convolutions)}, or one of "
        f"{', '.join(layers)}"
    )
