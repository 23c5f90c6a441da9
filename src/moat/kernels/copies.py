"""One copy per model for the many short attacks of an evaluation: tracing a net takes longer than one of them."""

from weakref import WeakKeyDictionary

import torch
from torch import nn

from moat.kernels.folding import for_attack, have_same_logits

# Model -> its state when it was copied, and the copy.
_COPIES: WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = WeakKeyDictionary()


def attack_copy(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """:func:`moat.kernels.for_attack`, or its earlier result if neither the model nor its logits have changed since.

    Args:
        example: images (B, C, H, W) on the model's device, on which copy and model are compared in every call.
    """
    state, copied = _COPIES.get(model, (None, None))
    now = _state(model)
    if copied is not None and state == now and have_same_logits(model, copied, example):
        return copied
    copied = for_attack(model, example)
    # A model that cannot be copied is returned itself; kept here it would never be freed.
    if copied is not model:
        _COPIES[model] = (now, copied)
    return copied


def _state(model: nn.Module) -> tuple:
    """Changes when a tensor is written to, and when a tensor or module is replaced."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((id(each), each._version) for each in tensors), tuple(id(each) for each in model.modules())
