"""How a hard selection passes a gradient to the router."""

import torch


def straight_through(scores: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """The gate (B,): a factor 1 on the selected expert's output, whose gradient reaches the selected score unchanged.

    The one-hot selection with a straight-through gradient: as the other experts' outputs are not part of the result,
    their scores get no gradient.

    Args:
        scores: (B, experts).
        route: the selected expert of each sample (B,), int64.
    """
    selected = scores.gather(1, route[:, None])[:, 0]
    return 1 + (selected - selected.detach())
