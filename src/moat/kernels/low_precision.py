"""The copy of a model that attacks are fastest on where the device computes faster in half precision.

What it finds must be judged by the model itself: an adversarial example that holds there is one, whatever found it.
"""

import logging

import torch
from torch import nn

from moat.kernels.folding import for_attack

log = logging.getLogger(__name__)


def for_low_precision_attack(
    model: nn.Module, example: torch.Tensor | None = None, dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """The copy of :func:`moat.attacks.for_attack` with convolutions in ``dtype``; float32 goes in and comes out.

    Batch norm is folded before its weights are rounded. Linear layers and a ``router`` stay in float32: the first cost
    nothing, and of the second's choices some per cent would change. A gradient differs from float32's by about a
    hundredth of its length, so attack with it and judge without: robust accuracy stays within noise, single verdicts
    may not.

    Args:
        model, example: as of :func:`moat.attacks.for_attack`. A model that cannot be copied is returned as it is.
    """
    copied = for_attack(model, example)
    if copied is model:
        log.warning("the model cannot be copied; it is attacked in its own precision")
        return model
    router = getattr(copied, "router", None)
    kept = {id(module) for module in router.modules()} if isinstance(router, nn.Module) else set()
    for module in copied.modules():
        if id(module) in kept:
            continue
        if isinstance(module, nn.Conv2d) or hasattr(module, "forward_sorted"):
            module.to(dtype)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(to_own_type)
    copied.register_forward_hook(to_float32)
    return copied


def only_casts(module: nn.Module) -> bool:
    """Whether its hooks, if it has any, are those of a copy in low precision."""
    hooks = {*module._forward_hooks.values(), *module._forward_pre_hooks.values()}
    return hooks <= {to_own_type, to_float32}


def to_own_type(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(module.weight.dtype) for x in inputs)


def to_float32(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()
