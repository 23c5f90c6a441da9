"""The copy of a model that attacks work on, made once for the many short evaluations of the gates."""

from weakref import WeakKeyDictionary

import torch
from torch import nn

from moat.attacks import for_attack
from moat.kernels.folding import _same_logits as same_logits

# Model -> what it was when its copy was made, and the copy. Tracing a net costs more than a short attack on it.
_COPIES: WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = WeakKeyDictionary()


def attack_copy(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """:func:`moat.attacks.for_attack`, or its result of before where the model is the same and so are the logits.

    Args:
        example: images (B, C, H, W) on the model's device, by which copy and model are compared each time.
    """
    state, copied = _COPIES.get(model, (None, None))
    now = _state(model)
    if copied is not None and state == now and same_logits(model, copied, example):
        return copied
    copied = for_attack(model, example)
    # One that cannot be copied is attacked as it is; kept here it would hold itself.
    if copied is not model:
        _COPIES[model] = (now, copied)
    return copied


def _state(model: nn.Module) -> tuple:
    """Changes when a tensor or a part of the model is written to or exchanged."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((id(each), each._version) for each in tensors), tuple(id(each) for each in model.modules())
