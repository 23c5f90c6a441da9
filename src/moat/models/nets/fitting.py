"""Adapts a library's net to a width and to the images: it keeps its layers and changes their channels."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from moat.models.nets.classifier import scale_channels


def fit(make: Callable[[], nn.Module], *, width: float, in_channels: int, image_size: int) -> tuple[nn.Module, int]:
    """The net that ``make`` returns, for images of ``in_channels`` channels, each hidden channel count times ``width``.

    An image is traced through the net: a layer's input channels become those that reach it, and a convolution's output
    channels are multiplied by ``width`` (see :func:`scale_channels`); a depthwise convolution keeps its multiplier. So
    sums and concatenations fit at every width, and at width 1 only the first layer can change. All of this happens on
    the meta device: no random number is drawn and no full-width weight allocated before those of the result.

    Args:
        make: returns a net without classification layer: images (B, C, H, W) to features (B, D).
        image_size: height and width in pixels of the traced image.

    Returns:
        (net, D); convolutions and batch norms have PyTorch's own initialisation.
    """
    with torch.device("meta"):
        net = make().eval()
        image = torch.empty(1, in_channels, image_size, image_size)
    fitted: list[nn.Module] = []
    handles = [
        layer.register_forward_pre_hook(functools.partial(_fit_layer, fitted=fitted, width=width))
        for layer in _layers(net)
    ]
    with torch.no_grad():
        num_features = net(image).shape[1]
    for handle in handles:
        handle.remove()
    assert sorted(map(id, fitted)) == sorted(map(id, _layers(net))), "a layer is not used, or used twice"
    net.to_empty(device=torch.get_default_device())
    for layer in _layers(net):
        layer.reset_parameters()
    return net.train(), num_features


def _layers(net: nn.Module) -> list[nn.Module]:
    """The modules with weights of their own."""
    return [module for module in net.modules() if next(module.parameters(recurse=False), None) is not None]


def _fit_layer(layer: nn.Module, inputs: tuple[torch.Tensor], *, fitted: list[nn.Module], width: float) -> None:
    channels = inputs[0].shape[1]
    if isinstance(layer, nn.Conv2d):
        _fit_convolution(layer, channels, width)
    else:
        assert isinstance(layer, nn.BatchNorm2d), f"{type(layer).__name__} has no rule for its channels"
        _fit_norm(layer, channels)
    fitted.append(layer)


def _fit_convolution(conv: nn.Conv2d, channels: int, width: float) -> None:
    depthwise = conv.groups > 1
    if depthwise:
        assert conv.groups == conv.in_channels, f"{conv.groups} groups of several channels have no rule"
        conv.out_channels = channels * (conv.out_channels // conv.in_channels)
        conv.groups = channels
    else:
        conv.out_channels = scale_channels(conv.out_channels, width)
    conv.in_channels = channels
    shape = (conv.out_channels, channels // conv.groups, *conv.kernel_size)
    conv.weight = nn.Parameter(conv.weight.new_empty(shape))
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.new_empty(conv.out_channels))


def _fit_norm(norm: nn.BatchNorm2d, channels: int) -> None:
    norm.num_features = channels
    norm.weight, norm.bias = (nn.Parameter(old.new_empty(channels)) for old in (norm.weight, norm.bias))
    norm.running_mean, norm.running_var = (old.new_empty(channels) for old in (norm.running_mean, norm.running_var))
