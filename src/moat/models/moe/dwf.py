"""The mixture of DWF (Divided We Fall, arXiv 2512.20821): a soft gate over nine experts."""

from moat.models.moe.experts import build_experts
from moat.models.moe.mlp_router import MlpRouter
from moat.models.moe.weighted import WeightedMixture

PARAMETERS = {
    "experts": {"type": "integer", "minimum": 1, "description": "how many full nets are mixed"},
    "gate_hidden": {
        "type": "integer",
        "minimum": 1,
        "required": False,
        "description": "hidden units of the gating network at width 1; 256 where it is not given",
    },
}


def dwf(arch: str, num_classes: int, *, experts: int = 9, gate_hidden: int = 256, **net) -> WeightedMixture:
    """A gating network with one hidden layer weighs ``experts`` nets ``arch``."""
    nets = build_experts(experts, arch, num_classes, net)
    return WeightedMixture(nets, MlpRouter(experts, hidden=gate_hidden, **net))


MIXTURE = dwf
