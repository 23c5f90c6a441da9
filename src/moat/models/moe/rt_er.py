"""The mixture of RT-ER: of several full nets one linear router on the image selects one for each image.

Source: Zhang, Xu, Hu and Wang, Optimizing Robustness and Accuracy in Mixture of Experts: A Dual-Model Approach, ICML
2025, arXiv 2502.06832, as its released code computes it. There, no loss reaches the router: it stays as it was drawn.
"""

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import MoatError
from moat.models.moe import views
from moat.models.moe.constrained import constrained, shortfall_of_lead
from moat.models.moe.dispatch import dispatch
from moat.models.moe.experts import Experts, build_experts
from moat.models.nets import Normalization
from moat.models.nets.normalize import make_normalize
from moat.models.precision import at_least_float32

PARAMETERS = {
    "experts": {"type": "integer", "minimum": 2, "description": "how many full nets the router selects from"},
    "router": {
        "enum": ["static", "learned"],
        "description": "static: fixed random weights, and the selected net's logits as they are, as in the released "
        "code; learned: trained, and the logits multiplied by the selected softmax weight",
    },
}


class LinearRouter(nn.Module):
    """Normalise, flatten, one linear map: images (B, C, H, W) in [0, 1] to scores (B, experts).

    PyTorch's default initial weights. They are buffers unless ``learned``.
    """

    def __init__(self, experts: int, *, learned: bool, image_size: int, in_channels: int, normalize: Normalization):
        super().__init__()
        self.normalize = make_normalize(normalize, in_channels)
        for name, value in nn.Linear(in_channels * image_size**2, experts).named_parameters():
            if learned:
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.normalize(x).flatten(1), self.weight, self.bias)


class RoutedNets(nn.Module):
    """z_e(x) of the expert e with the highest score: images (B, C, H, W) in [0, 1] to logits (B, K).

    With ``weighted``, the logits are multiplied by softmax(scores)_e, through which the router learns, and the model
    has a ``router`` that can be detached. Without, no gradient of the logits reaches the scores.
    """

    def __init__(self, experts: Experts, router: nn.Module, *, weighted: bool):
        super().__init__()
        self.experts, self.weighted = experts, weighted
        if weighted:
            self.router = router
        else:
            self.static_router = router

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, E), in float32 or wider also under autocast: in bfloat16 some images would change the expert."""
        router = self.router if self.weighted else self.static_router
        with torch.autocast(x.device.type, enabled=False):
            return router(at_least_float32(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.route_logits(x)
        route = routes_of(scores)
        logits = self.by_route(x, route)
        return logits * scores.softmax(1).gather(1, route[:, None]) if self.weighted else logits

    def by_route(self, x: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        """The logits (B, K) of a given expert (B,) for each image, without any weight."""
        return at_least_float32(dispatch(self.experts, x, route))

    def softly(self, x: torch.Tensor) -> torch.Tensor:
        """sum_e softmax(scores)_e z_e (B, K): the hard choice made differentiable."""
        weights = self.route_logits(x).softmax(1)
        return (weights.T[..., None] * self.experts(x)).sum(0)

    def on_route(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """An expert's logits, on the condition that the router selects it (:mod:`moat.models.moe.constrained`)."""
        return constrained(self.experts[expert](x), shortfall_of_lead(self.route_logits(x), expert))

    def attack_views(self) -> dict[str, nn.Module]:
        """The views ``joint0``, …: an image that fools an expert is no success unless it is sent to that expert."""
        joint = {
            f"joint{e}": views.Computed(self, lambda model, x, e=e: model.on_route(x, e))
            for e in range(len(self.experts))
        }
        soft = views.Computed(self, lambda model, x: model.softly(x))
        return {views.SOFT: soft, views.AVERAGE: views.average(self), **views.experts_alone(self), **joint}


def routes_of(scores: torch.Tensor) -> torch.Tensor:
    """The expert with the highest score (B,), the first of several.

    Raises:
        MoatError: scores that are not finite; all of them would go to expert 0.
    """
    if bad := int((~scores.isfinite()).any(1).sum()):
        raise MoatError(f"the router's scores are not finite for {bad} of {len(scores)} images")
    return scores.argmax(1)


def rt_er(
    arch: str,
    num_classes: int,
    *,
    experts: int = 4,
    router: str = "static",
    width: float,
    image_size: int,
    in_channels: int,
    normalize: Normalization,
) -> RoutedNets:
    """``experts`` nets ``arch`` and a linear router."""
    image = {"image_size": image_size, "in_channels": in_channels, "normalize": normalize}
    nets = build_experts(experts, arch, num_classes, {"width": width, **image})
    learned = router == "learned"
    return RoutedNets(nets, LinearRouter(experts, learned=learned, **image), weighted=learned)


MIXTURE = rt_er
