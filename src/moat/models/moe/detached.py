"""A routed model without the gradients through its router."""

import torch
from torch import nn


class DetachedRouter(nn.Module):
    """The model in value; in gradient, what it would be with fixed routes.

    An attack that follows the straight-through gradient can spend its budget on the router and overstate the
    robustness; this is the model to attack instead.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hook = self.model.router.register_forward_hook(lambda module, inputs, output: output.detach())
        try:
            return self.model(x)
        finally:
            hook.remove()

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.route_logits(x)


def detached_router(model: nn.Module) -> DetachedRouter:
    """``model`` (it has a module ``.router``), whose gradients do not pass through the router."""
    return DetachedRouter(model)
