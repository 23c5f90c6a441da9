"""The MoE-CNN: a router that selects one expert per image, and a trunk that computes that expert only."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError, MoatError, unknown_name
from moat.models.moe import views
from moat.models.moe.backbones import TRUNKS
from moat.models.moe.norms import NORMS
from moat.models.moe.routers import HEADS, ROUTERS, build_router
from moat.models.moe.routing import straight_through
from moat.models.nets import Classifier, Normalization, initialize
from moat.models.nets.normalize import make_normalize
from moat.models.precision import at_least_float32

PARAMETERS = {
    "experts": {"type": "integer", "minimum": 1, "description": "experts of each layer"},
    "ratio": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "width of one expert relative to the dense layer",
    },
    "router": {"enum": ["gap", "dcar", "gsa", "cgsa"], "description": "what scores the experts"},
    "router_head": {
        "enum": ["grouped", "fc"],
        "required": False,
        "description": "of dcar and cgsa: how their features become scores; grouped where it is not given",
    },
    "bn": {"enum": ["shared", "per_expert"], "description": "batch norm of the routed layers"},
}


class MoeCnn(Classifier):
    """Images (B, C, H, W) in [0,1] to logits (B, num_classes), each through the expert with its highest score.

    The selection is hard and the selected output is not weighted. In the backward pass the selected score gets the
    gradient of a factor 1 on its expert's output, summed over the layers; the other scores get none.
    """

    def __init__(self, trunk: nn.Module, router: nn.Module, num_classes: int, experts: int):
        super().__init__(trunk, trunk.num_features, num_classes)
        self.router = router
        self.experts = experts

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, experts), before any softmax, in float32 or wider also under autocast.

        In bfloat16 the router would send a few per cent of the images to another expert.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.router(at_least_float32(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self._features(x, self.route_logits(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(x, self.route_logits(x))

    def classify(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits of ``x`` routed by the given scores (B, experts); detach them to keep gradients from the router.

        Raises:
            MoatError: scores that are not finite.
        """
        return self.head(self._features(x, scores))

    def _features(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bad := int((~scores.isfinite()).any(1).sum()):
            # argmax would send all of these images to expert 0.
            raise MoatError(f"the router's scores are not finite for {bad} of {len(scores)} images")
        route = scores.argmax(1)
        return self.trunk(self.normalize(x), route, straight_through(scores, route))

    def path(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """F_e(x): the logits (B, K) with every image sent to one expert."""
        scores = F.one_hot(torch.full(x.shape[:1], expert, device=x.device), self.experts).to(x.dtype)
        return self.classify(x, scores)

    def soft_mixture(self, x: torch.Tensor) -> torch.Tensor:
        """sum_e softmax(G(x))_e F_e(x) (B, K): the hard choice made differentiable."""
        weights = F.softmax(self.route_logits(x), 1)
        logits = torch.stack([self.path(x, expert) for expert in range(self.experts)])
        return (weights.T[..., None] * logits).sum(0)

    def attack_views(self) -> dict[str, nn.Module]:
        paths = {f"path{e}": views.Computed(self, lambda model, x, e=e: model.path(x, e)) for e in range(self.experts)}
        return {views.SOFT: views.Computed(self, lambda model, x: model.soft_mixture(x)), **paths}


def build_moe_cnn(
    arch: str,
    num_classes: int,
    *,
    experts: int = 2,
    ratio: float = 0.5,
    router: str = "gap",
    router_head: str = "grouped",
    bn: str = "shared",
    width: float = 1.0,
    image_size: int = 32,
    in_channels: int = 3,
    normalize: Normalization = "cifar10",
) -> MoeCnn:
    """A freshly initialised MoE-CNN; it has ``.route_logits(x)`` (B, experts) and ``.router``.

    Args:
        arch: a key of :data:`moat.models.moe.backbones.TRUNKS`.
        experts: number of experts per layer.
        ratio: width of one expert relative to the dense layer; with ``experts * ratio = 1`` the experts tile it.
        router: "gap" (pooling), "dcar", "gsa" or "cgsa" (attention, ``moat.models.moe.routers``). It sees raw pixels.
        router_head: "grouped" or "fc", of dcar and cgsa.
        bn: "shared" by all experts or "per_expert". A ResNet's shared shortcuts keep shared ones.
        width: factor on all channels, the router's included.
        image_size: has no effect; any size is accepted.
        normalize: as in :func:`moat.models.nets.build`, of the trunk's input.

    Raises:
        ConfigError: an unknown name or a number out of range.
    """
    for what, value, known in (("arch", arch, TRUNKS), ("router", router, ROUTERS), ("bn", bn, NORMS)):
        if value not in known:
            raise ConfigError(f"{what}: " + unknown_name(value, known, what=f"{what} of an MoE-CNN"))
    if router_head not in HEADS:
        raise ConfigError("router_head: " + unknown_name(router_head, HEADS, what="head"))
    if not isinstance(experts, int) or isinstance(experts, bool) or experts < 1:
        raise ConfigError(f"experts: {experts!r} is not allowed; a whole number from 1")
    for key, value in (("width", width), ("ratio", ratio)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{key}: {value!r} is not allowed; a factor above 0, e.g. 0.5")
    kind, depths = TRUNKS[arch]
    trunk = kind(depths, width=width, ratio=ratio, in_channels=in_channels, experts=experts, norm=bn)
    net = MoeCnn(trunk, nn.Identity(), num_classes, experts)
    initialize(net)
    # After initialize, because a router keeps its own initial weights.
    net.router = build_router(router, experts, width=width, in_channels=in_channels, head=router_head)
    net.normalize = make_normalize(normalize, in_channels)
    return net


MIXTURE = build_moe_cnn
