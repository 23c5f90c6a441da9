"""The precision of scores and losses."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float32, or as it is if it is wider: half precision is too coarse for softmax and losses."""
    # Without a branch on the type, so that the forward passes that use this can be traced.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
