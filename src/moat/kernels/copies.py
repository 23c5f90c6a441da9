"""One copy per model for the many short attacks of an evaluation: tracing a net takes longer than one of them."""

from weakref import WeakKeyDictionary

import torch
from torch import nn

from moat.kernels.folding import for_attack, have_same_logits
from moat.models.guard import Guard, behind

# Model -> its state when it was copied, and the copy; None for a model that cannot be copied.
_COPIES: WeakKeyDictionary[nn.Module, tuple[object, nn.Module | None]] = WeakKeyDictionary()


def attack_copy(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """:func:`moat.kernels.for_attack`, or its earlier result if neither the model nor its logits have changed since.

    Args:
        example: images (B, C, H, W) on the model's device, on which copy and model are compared in every call; a model
            that could not be copied is not tried again before it changes.
    """
    # Guards come and go.
    key = behind(model)
    now = _state(key)
    state, copied = _COPIES.get(key, (None, None))
    if key in _COPIES and state == now:
        if copied is None:
            return model
        shown = model.around(copied) if isinstance(model, Guard) else copied
        if have_same_logits(model, shown, example):
            return shown
    shown = for_attack(model, example)
    # The model itself, kept here, would never be freed.
    _COPIES[key] = (now, None if shown is model else behind(shown))
    return shown


def _state(model: nn.Module) -> tuple:
    """Changes when a tensor is written to, and when a tensor or module is replaced."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((id(each), each._version) for each in tensors), tuple(id(each) for each in model.modules())
