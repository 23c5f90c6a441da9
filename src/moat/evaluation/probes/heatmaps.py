"""Grad-CAM on the last feature maps, clean and attacked: where in the image the prediction comes from.

Source: Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2: a map's weight is the mean gradient of the predicted
class's logit with respect to it; the heat map is the positive part of the weighted sum. A mixture of full nets has one
set of maps per expert; their gradients include the gate's weights, so that the sums can be added.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError
from moat.evaluation.probes._images import Images
from moat.evaluation.probes._networks import networks

PARAMETERS = ("setting", "images")


def collect(model: nn.Module, images: Images) -> dict[str, np.ndarray]:
    """``label`` (N,), and for ``clean`` and ``attacked``: the images uint8 (N, H, W, C), ``…_map`` float32 (N, H, W)
    from 0 to 1, and ``…_predicted`` (N,).

    Attacked images are rounded to 8 bits for display; maps and predictions are those of the unrounded images.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for batch in images.batches(model):
        found.setdefault("label", []).append(batch.labels)
        for name, x in (("clean", batch.clean), ("attacked", batch.attacked)):
            # One at a time, because an MoE-CNN may sort a batch by expert, which would permute the maps.
            maps, predicted = zip(*(grad_cam(model, image[None]) for image in x), strict=True)
            found.setdefault(name, []).append((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
            found.setdefault(f"{name}_map", []).append(torch.stack(maps))
            found.setdefault(f"{name}_predicted", []).append(torch.stack(predicted))
    return {name: torch.cat(part).cpu().contiguous().numpy() for name, part in found.items()}


def grad_cam(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The heat map (H, W), of maximum 1 unless it is all 0, and the predicted class () of an image (1, C, H, W)."""
    layers = last_maps(model, x)
    captured: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: captured.append(call[2])) for layer in layers]
    try:
        # The image requires a gradient so that the maps have one even if the parameters are frozen.
        logits = model(x.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    predicted = logits[0].argmax()
    gradients = torch.autograd.grad(logits[0, predicted], captured, materialize_grads=True)
    # The gradients of an expert that was not selected are zero.
    sums = [
        F.interpolate((gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True), x.shape[-2:], mode="bilinear")
        for gradient, maps in zip(gradients, captured, strict=True)
    ]
    heat = torch.stack(sums).sum(0)[0, 0].clamp(min=0).detach().float()
    return heat / heat.max().clamp(min=1e-12), predicted


def last_maps(model: nn.Module, x: torch.Tensor) -> Sequence[nn.Module]:
    """Per network of ``model``, the layer that computes its last feature maps larger than one pixel.

    Raises:
        ConfigError: a network without feature maps.
    """
    order: list[nn.Module] = []

    def note(module: nn.Module, _, output) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[-1] * output.shape[-2] > 1:
            order.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for network in networks(model):
        inside = set(network.modules())
        last = next((module for module in reversed(order) if module in inside), None)
        if last is None:
            raise ConfigError(f"{type(network).__name__}: no layer gives feature maps; a heat map needs some")
        found.append(last)
    return found
