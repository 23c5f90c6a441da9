"""A routed model without gradients through its router."""

import torch
from torch import nn


class DetachedRouter(nn.Module):
    """The model's logits, with the gradients that it would have if the routes were fixed.

    An attack that follows the straight-through gradient can waste its steps on the router and overstate robustness;
    attack this model instead.
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


def can_detach_router(model: nn.Module) -> bool:
    """Whether the model's router is a module of its own that takes hooks, so that its scores can be detached."""
    router = getattr(model, "router", None)
    return isinstance(router, nn.Module) and not isinstance(router, torch.jit.ScriptModule)


def detached_router(model: nn.Module) -> DetachedRouter:
    """``model``, which has a module ``.router``, without gradients through the router."""
    return DetachedRouter(model)
