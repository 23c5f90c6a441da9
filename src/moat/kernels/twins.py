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
from moat.models import ChannelExpertConv2d, MoeCnn
from moat.models.moe.experts import Experts
from moat.models.moe.norms import ExpertBatchNorm2d
from moat.models.moe.soe import SynergyOfExperts
from moat.models.nets.masked import MaskedConv2d

# Mixtures of experts; the twins of convolutions differ between trainings and attacks.
MIXTURES: Mapping[type[nn.Module], type[nn.Module]] = {
    MoeCnn: SortedMoeCnn,
    ChannelExpertConv2d: SortedChannelExpertConv2d,
    ExpertBatchNorm2d: SortedExpertBatchNorm2d,
    Experts: ConcurrentExperts,
    SynergyOfExperts: ConcurrentSynergyOfExperts,
}
# Nets of these libraries train with their own convolutions.
LIBRARIES = ("torchvision", "timm")
# Modules of these packages hand on the groups of a sorted batch in place of a route.
OWN = ("moat", "torch")


def for_training(model: nn.Module) -> nn.Module:
    """Let fast twins compute ``model``, in place, in training and when it is evaluated itself; returns it.

    Results are those of the definitions in :mod:`moat.models` up to rounding. Models of other classes stay as they
    are, but for 3x3 convolutions that a CPU computes faster in training.
    """
    use_twins(model, MIXTURES)
    of_libraries = {module for net in model.modules() if _package(net) in LIBRARIES for module in net.modules()}
    for module in model.modules():
        if type(module) is MaskedConv2d:
            module.__class__ = FastMaskedConv2d
        elif type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module not in of_libraries:
            module.__class__ = FastConv2d
    return model


def use_twins(model: nn.Module, twins: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Turn every module of a class in ``twins`` into its twin; an MoE-CNN with foreign modules stays as it is."""
    for module in model.modules():
        if type(module) is MoeCnn and not all(_package(part) in OWN for part in module.trunk.modules()):
            continue
        if type(module) in twins:
            module.__class__ = twins[type(module)]


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]
