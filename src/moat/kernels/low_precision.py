"""Half precision in a copy for attacks, for devices that compute faster in it."""

import torch
from torch import nn

from moat.models import ChannelExpertConv2d


def lower_precision(copied: nn.Module, dtype: torch.dtype) -> None:
    """Compute the convolutions of a frozen copy in ``dtype``; it still takes and returns float32.

    Linear layers and a ``router`` stay in float32: the former cost next to nothing, and the latter would send a few
    per cent of the images to another expert.
    """
    router = getattr(copied, "router", None)
    kept = set(router.modules()) if isinstance(router, nn.Module) else set()
    for module in copied.modules():
        if module in kept:
            continue
        if isinstance(module, (nn.Conv2d, ChannelExpertConv2d)):
            module.to(dtype)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(_to_own_type)
    copied.register_forward_hook(_to_float32)


def only_casts(module: nn.Module) -> bool:
    """Whether a module has no hooks but those of :func:`lower_precision`."""
    hooks = {*module._forward_hooks.values(), *module._forward_pre_hooks.values()}
    return hooks <= {_to_own_type, _to_float32}


def _to_own_type(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(module.weight.dtype) for x in inputs)


def _to_float32(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()
