"""Statistics of a router for history.csv."""

import torch


def weights(kind: str, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean weight of each expert, and the mean entropy in nats, of routing weights (B, E) whose rows sum to 1.

    Args:
        kind: of the images ("clean", "adversarial"); the suffix of the names.
    """
    weights = weights.detach()
    entropy = torch.special.entr(weights).sum(1).mean()
    return {**_each("weight", kind, weights.mean(0)), f"router_entropy_{kind}": entropy}


def loads(kind: str, chosen: torch.Tensor, experts: int) -> dict[str, torch.Tensor]:
    """The fraction of images that each of ``experts`` was selected for; ``chosen``: (B,), int64."""
    return _each("load", kind, torch.stack([(chosen == index).float().mean() for index in range(experts)]))


def _each(what: str, kind: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"expert{index}_{what}_{kind}": value for index, value in enumerate(values)}
