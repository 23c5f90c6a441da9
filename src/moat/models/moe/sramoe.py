"""SRAMoE (DRAMoE, Section 3): the static mixture of a clean and an adversarially trained net, weighted by a router."""

from moat.models.moe.experts import build_experts
from moat.models.moe.routers import build_router
from moat.models.moe.weighted import WeightedMixture

PARAMETERS = {"experts": {"type": "integer", "minimum": 1, "description": "how many full nets are mixed"}}


def sramoe(arch: str, num_classes: int, *, experts: int = 2, **net) -> WeightedMixture:
    """A ResNet-20 router weighs ``experts`` nets ``arch``."""
    nets = build_experts(experts, arch, num_classes, net)
    return WeightedMixture(nets, build_router("gap", experts, in_channels=net["in_channels"], width=net["width"]))


MIXTURE = sramoe
