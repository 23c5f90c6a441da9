"""What a classifier's output means, said once: the predicted class, and the gradient of a model that has none."""

import torch


def predicted_class(logits: torch.Tensor) -> torch.Tensor:
    """The class (B,) with the highest of the logits (B, K), the first of several; -1, which is never correct, for NaN.

    Of the logits, not of their softmax, which rounds small differences away. An infinite highest logit counts as NaN.
    """
    return torch.where(torch.isfinite(logits.detach().amax(1)), logits.argmax(1), -1)


def with_gradient(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A copy of ``value`` whose gradient with respect to ``x`` is zero where there would be none.

    A model that detaches its input, or computes without autograd, is constant as far as an attack can see.
    """
    return _WithGradient.apply(value, x)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (x,) = ctx.saved_tensors
        return gradient, torch.zeros_like(x)
