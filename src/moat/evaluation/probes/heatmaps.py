"""Where in the image a model finds its prediction: Grad-CAM on the last feature maps, clean and attacked.

Source: Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2: a map's weight is the mean of the gradient of the
predicted class's logit with respect to it; the heat map is the positive part of the weighted sum. A mixture of full
nets has one set of maps per expert; the gradients carry the check's weights, and the sums are added.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError
from moat.evaluation.probes._images import Images
from moat.evaluation.probes._parts import networks

TAKES = ("setting", "images")


def collect(model: nn.Module, images: Images) -> dict[str, np.ndarray]:
    """For ``clean`` and ``attacked``: the images uint8 (N, H, W, C), ``…_map`` float32 (N, H, W) from 0 to 1 and
    ``…_predicted`` (N,); and ``label`` (N,).

    Attacked images are rounded to 8 bits for printing; maps and predictions are those of the unrounded ones.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for batch in images.batches(model):
        found.setdefault("label", []).append(batch.labels)
        for name, x in (("clean", batch.clean), ("attacked", batch.attacked)):
            # One by one: an MoE-CNN sorts a batch by expert, which would mix up the maps.
            maps, predicted = zip(*(grad_cam(model, image[None]) for image in x), strict=True)
            found.setdefault(name, []).append((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
            found.setdefault(f"{name}_map", []).append(torch.stack(maps))
            found.setdefault(f"{name}_predicted", []).append(torch.stack(predicted))
    return {name: torch.cat(part).cpu().contiguous().numpy() for name, part in found.items()}


def grad_cam(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The heat map (H, W), its largest value 1 (or all 0), and the predicted class () of one image (1, C, H, W)."""
    layers = last_maps(model, x)
    captured: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: captured.append(call[2])) for layer in layers]
    try:
        # The image asks for a gradient so that maps have one even though the parameters are frozen.
        logits = model(x.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    predicted = logits[0].argmax()
    gradients = torch.autograd.grad(logits[0, predicted], captured, materialize_grads=True)
    # Zero where a hard choice has left an expert's maps unused.
    sums = [
        F.interpolate((gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True), x.shape[-2:], mode="bilinear")
        for gradient, maps in zip(gradients, captured, strict=True)
    ]
    heat = torch.stack(sums).sum(0)[0, 0].clamp(min=0).detach().float()
    return heat / heat.max().clamp(min=1e-12), predicted


def last_maps(model: nn.Module, x: torch.Tensor) -> Sequence[nn.Module]:
    """For each network of ``model`` the layer that gives its last feature maps, larger than one pixel.

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
    return [_last(order, network) for network in networks(model)]


def _last(order: Sequence[nn.Module], network: nn.Module) -> nn.Module:
    inside = set(network.modules())
    for module in reversed(order):
        if module in inside:
            return module
    raise ConfigError(f"{type(network).__name__}: no layer gives feature maps; a heat map needs some")
