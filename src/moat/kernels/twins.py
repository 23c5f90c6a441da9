"""Fast twins: subclasses that compute what a class of :mod:`moat.models` defines, in less time.

A twin adds no parameter or buffer, so a module becomes its twin by a change of class: parameters, their order, names,
hooks and state dict stay. Only exact classes have twins; a subclass of a model may mean something else.
"""

from collections.abc import Mapping

from torch import nn

from moat.kernels.channel_experts import SortedChannelExpertConv2d
from moat.kernels.convolution import FastConv2d, FastMaskedConv2d
from moat.kernels.mixtures import ConcurrentExperts, ConcurrentSynergyOfExperts
from moat.kernels.moe_cnn import SortedExpertBatchNorm2d, SortedMoeCnn
from moat.models import ChannelExpertConv2d
from moat.models.moe.experts import Experts
from moat.models.moe.norms import ExpertBatchNorm2d
from moat.models.moe.soe import SynergyOfExperts
from moat.models.nets.masked import MaskedConv2d
from moat.models.nets.pointwise import is_unsafe

# Parts of mixtures; plain convolutions have twins for training only.
TWINS: Mapping[type[nn.Module], type[nn.Module]] = {
    ChannelExpertConv2d: SortedChannelExpertConv2d,
    ExpertBatchNorm2d: SortedExpertBatchNorm2d,
    Experts: ConcurrentExperts,
    SynergyOfExperts: ConcurrentSynergyOfExperts,
}
# Nets of these libraries train with their own convolutions.
LIBRARIES = ("torchvision", "timm")


def for_training(model: nn.Module) -> nn.Module:
    """Let fast twins compute ``model``, in place, in training and when it is evaluated itself; returns it.

    Results are those of the definitions in :mod:`moat.models` up to rounding. Models of other classes stay as they
    are, but for convolutions that a CPU computes faster, or only so without damage, in training.
    """
    use_twins(model)
    of_libraries = {module for net in model.modules() if _package(net) in LIBRARIES for module in net.modules()}
    for module in model.modules():
        if type(module) is MaskedConv2d:
            module.__class__ = FastMaskedConv2d
        elif type(module) is nn.Conv2d and module not in of_libraries and _has_twin(module):
            module.__class__ = FastConv2d
    return model


def _has_twin(module: nn.Conv2d) -> bool:
    unsafe = is_unsafe(module.in_channels, module.kernel_size, module.stride)
    return module.kernel_size == (3, 3) or unsafe


def use_twins(model: nn.Module) -> None:
    """Turn mixtures of experts, and their parts, into their twins."""
    for module in model.modules():
        if type(module) in TWINS:
            module.__class__ = TWINS[type(module)]
    for module in model.modules():
        SortedMoeCnn.convert(module)


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]
