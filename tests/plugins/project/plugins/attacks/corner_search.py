"""Random search among the corners of the ball."""

import torch

from moat.attacks.parts.arguments import attack

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "corners": {"type": "count", "description": "how many corners are tried"},
}


@attack(PARAMETERS)
def corner_search(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, *, eps: float, corners: int = 4
) -> torch.Tensor:
    """The first of the corners whose image is misclassified; the last one where none is."""
    generator = torch.Generator().manual_seed(0)
    best = x.clone()
    with torch.no_grad():
        for _ in range(corners):
            robust = model(best).argmax(1) == y
            signs = torch.randint(2, x.shape[1:], generator=generator).to(x) * 2 - 1
            best[robust] = (x[robust] + eps * signs).clamp(0, 1)
    return best
