"""Adaptive smoothing: a mixing net decides for each image how much an accurate and a robust net weigh.

Source: Bai, Anderson, Kim and Sojoudi, Improving the Accuracy-Robustness Trade-Off of Classifiers via Adaptive
Smoothing, SIMODS 2024, arXiv 2301.12554, as its released code computes it for two ResNet-18 (the third version of the
mixing net).
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError
from moat.models.moe import views
from moat.models.moe.constrained import constrained
from moat.models.moe.experts import Experts, build_experts
from moat.models.moe.mixed_fixed import log_mixture
from moat.models.nets.classifier import Classifier, global_average
from moat.models.nets.preact_resnet import PreActBlock
from moat.models.nets.resnet import ResNetTrunk
from moat.models.precision import at_least_float32

PARAMETERS = {
    "alpha_low": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "description": "least weight of the robust net in evaluation",
    },
    "alpha_high": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "greatest weight of the robust net in evaluation",
    },
}
# gamma = SCALE * normalised output + bias; the bias in training and in evaluation.
SCALE, TRAINING_BIAS, EVALUATION_BIAS = 2.0, 0.4, 1.0
# In training the mixing net's output is cut to so many standard deviations around the batch's mean.
CUT = 0.6
# How much the attacks of the views ``joint…`` weigh the mixing net against the classification.
JOINT = (0.1, 0.2, 0.4)


class MixingNet(nn.Module):
    """Features of both nets after their first two stages to one number for each image (B,).

    Three pairs of pre-activation blocks of stride 2, each with twice the channels; the features of the second stage are
    added after the first pair. PyTorch's default initial weights.

    Args:
        first, second: channels of both nets together after the first and the second stage.
    """

    def __init__(self, first: int, second: int):
        super().__init__()
        channels = (first, second, 2 * second, 4 * second)
        self.layers = nn.ModuleList(
            nn.Sequential(PreActBlock(before, after, 2), PreActBlock(after, after, 1))
            for before, after in itertools.pairwise(channels)
        )
        self.head = nn.Linear(channels[-1], 1, bias=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        first_layer, *others = self.layers
        h = first_layer(first) + second
        for layer in others:
            h = layer(h)
        return self.head(global_average(h))[:, 0]


class AdaptiveSmoothing(nn.Module):
    """log((1 - alpha(x)) softmax(g(x)) + alpha(x) softmax(h(x))): images (B, C, H, W) in [0, 1] to (B, K).

    alpha = sigmoid(gamma) in training, and in evaluation low + (high - low) sigmoid(gamma). gamma comes from the mixing
    net, whose output is normalised over the batch in training and by running statistics in evaluation.

    Args:
        experts: the accurate net g and the robust net h, both ResNets, in this order.
        low, high: the range of alpha in evaluation.
    """

    def __init__(self, experts: Experts, *, low: float, high: float):
        super().__init__()
        self.experts, self.low, self.high = experts, low, high
        first, second = (sum(widths) for widths in zip(*(_widths(expert) for expert in experts), strict=True))
        self.mixing = MixingNet(first, second)
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=0.01)

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The logits (B, K) of g and of h, and gamma (B,)."""
        (standard, *of_g), (robust, *of_h) = (_with_features(expert, x) for expert in self.experts)
        first, second = (torch.cat(pair, 1) for pair in zip(of_g, of_h, strict=True))
        return standard, robust, self.gamma(at_least_float32(self.mixing(first, second)))

    def gamma(self, m: torch.Tensor) -> torch.Tensor:
        """gamma (B,) of the mixing net's output (B,)."""
        if self.training:
            mean, cut = m.mean(), CUT * m.std()
            m = m.clamp(min=mean - cut, max=mean + cut)
        bias = TRAINING_BIAS if self.training else EVALUATION_BIAS
        return SCALE * self.norm(m[:, None])[:, 0] + bias

    def alpha(self, gamma: torch.Tensor) -> torch.Tensor:
        """The weight of h (B,)."""
        weight = torch.sigmoid(gamma)
        return weight if self.training else self.low + (self.high - self.low) * weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        standard, robust, gamma = self.parts(x)
        return mixed(standard, robust, self.alpha(gamma))

    def attack_views(self) -> dict[str, nn.Module]:
        """With alpha as a constant, or at its least; each net alone; and classification and mixing net at once."""
        found = {
            "constant-alpha": views.Computed(self, lambda model, x: model.with_alpha(x, None)),
            "alpha_min": views.Computed(self, lambda model, x: model.with_alpha(x, model.low)),
        }
        for weight in JOINT:
            found[f"joint{weight:g}"] = views.Computed(
                self, lambda model, x, weight=weight: model.against_both(x, weight)
            )
        return found | views.experts_alone(self)

    def with_alpha(self, x: torch.Tensor, alpha: float | None) -> torch.Tensor:
        """The mixture with a given alpha; with its own one, but without its gradient, for None."""
        standard, robust, gamma = self.parts(x)
        own = self.alpha(gamma).detach()
        return mixed(standard, robust, own if alpha is None else torch.full_like(own, alpha))

    def against_both(self, x: torch.Tensor, weight: float) -> torch.Tensor:
        """Logits (B, K + 1) whose cross-entropy has the gradient of (1 - w) CE(F(x), y) + w BCE(gamma, 1)."""
        standard, robust, gamma = self.parts(x)
        logits = mixed(standard, robust, self.alpha(gamma))
        return constrained(logits, -F.softplus(-gamma), weight / (1 - weight))


def mixed(standard: torch.Tensor, robust: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, K) of two nets' logits, mixed by alpha (B,)."""
    return log_mixture(F.log_softmax(standard, 1), F.log_softmax(robust, 1), alpha[:, None])


def _stage_ends(trunk: nn.Module) -> list[int]:
    """After how many blocks each stage of a ResNet ends."""
    if not isinstance(trunk, ResNetTrunk):
        raise ConfigError("arch: the mixing net reads the stages of a ResNet; allowed: resnet18, resnet34")
    begins = [number for number, block in enumerate(trunk.blocks) if block.conv1.stride != (1, 1)]
    return [*begins, len(trunk.blocks)]


def _widths(net: Classifier) -> tuple[int, int]:
    first, second, *_ = _stage_ends(net.trunk)
    return net.trunk.blocks[first - 1].conv2.out_channels, net.trunk.blocks[second - 1].conv2.out_channels


def _with_features(net: Classifier, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (B, K), float32 or wider, and the features (B, C, H, W) after the first and the second stage."""
    ends = _stage_ends(net.trunk)
    h, features = net.trunk.stem(net.normalize(x)), []
    for begin, end in itertools.pairwise([0, *ends]):
        h = net.trunk.blocks[begin:end](h)
        features.append(h)
    return at_least_float32(net.head(global_average(h))), features[0], features[1]


def adaptive_smoothing(
    arch: str, num_classes: int, *, alpha_low: float = 0.5, alpha_high: float = 0.95, **net
) -> AdaptiveSmoothing:
    """Two nets ``arch`` and a mixing net.

    Raises:
        ConfigError: a net that is no ResNet, or a range of alpha that is empty.
    """
    if not 0 <= alpha_low <= alpha_high < 1:
        raise ConfigError(f"alpha_low, alpha_high: {alpha_low!r} to {alpha_high!r}; allowed: a range within [0, 1)")
    return AdaptiveSmoothing(build_experts(2, arch, num_classes, net), low=alpha_low, high=alpha_high)


MIXTURE = adaptive_smoothing
