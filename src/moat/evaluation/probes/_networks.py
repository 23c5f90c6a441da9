"""The networks of a model."""

from collections.abc import Sequence

from torch import nn


def networks(model: nn.Module) -> Sequence[nn.Module]:
    """The experts of a mixture of full nets; any other model is one network, also an MoE-CNN, which shares layers."""
    experts = getattr(model, "experts", None)
    if not isinstance(experts, nn.ModuleList):
        return [model]
    # SoE's experts are a net and a second head.
    return [getattr(expert, "net", expert) for expert in experts]
