"""BlockMoE: a ResNet in which each of the last residual blocks is one of several, selected for each image and layer.

Source: Pavlitska, Fan, Ditschuneit and Zöllner, Robust Experts: the Effect of Adversarial Training on CNNs with Sparse
Mixture-of-Experts Layers, ICCV 2025 Workshops, arXiv 2509.05086, as its released code computes it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from moat.base.errors import ConfigError
from moat.models import nets
from moat.models.moe import views
from moat.models.moe.constrained import constrained, shortfall_of_lead
from moat.models.moe.dispatch import dispatch
from moat.models.moe.routing import straight_through
from moat.models.moe.rt_er import routes_of
from moat.models.nets import initialize
from moat.models.nets.classifier import Classifier, global_average
from moat.models.nets.resnet import STAGE_CHANNELS, BasicBlock, ResNetTrunk
from moat.models.precision import at_least_float32

PARAMETERS = {
    "experts": {"type": "integer", "minimum": 2, "description": "blocks that each of the layers selects from"},
    "blocks": {"type": "integer", "minimum": 1, "description": "how many residual blocks are layers, from the last on"},
    "tail": {
        "type": "integer",
        "minimum": 0,
        "required": False,
        "description": "how many of the last blocks are single ones and follow the layers; none where it is not given",
    },
    "gate": {
        "enum": ["gap", "conv"],
        "description": "gap: a linear map of the pooled input; conv: a 3x3 convolution without padding, then pooled",
    },
    "top_k": {"type": "integer", "minimum": 1, "description": "blocks that each image takes in a layer"},
}
# All paths through the net are views, up to so many.
MOST_PATHS = 16
# The view ``soft-sharp`` raises the gate's probabilities to the power of 1 / this.
SHARPNESS = 0.1


class Gates(nn.Module):
    """The gates of all layers: a layer's input (B, C, H, W) and its number to scores (B, experts).

    PyTorch's default initial weights. In float32 or wider also under autocast.
    """

    def __init__(self, kind: str, channels: Sequence[int], experts: int):
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Linear(count, experts) if kind == "gap" else nn.Conv2d(count, experts, 3, bias=False)
            for count in channels
        )

    def forward(self, h: torch.Tensor, layer: int) -> torch.Tensor:
        gate = self.gates[layer]
        with torch.autocast(h.device.type, enabled=False):
            h = at_least_float32(h)
            return gate(global_average(h)) if isinstance(gate, nn.Linear) else global_average(gate(h))


@dataclass(frozen=True)
class Routing:
    """What a pass decided, layer by layer.

    Attributes:
        scores: the gates' scores (B, E).
        choice: the selected blocks (B, k), the best first.
    """

    scores: list[torch.Tensor]
    choice: list[torch.Tensor]

    @property
    def probabilities(self) -> list[torch.Tensor]:
        """The softmax of the scores."""
        return [scores.softmax(1) for scores in self.scores]


# A layer's number, its blocks and its input to its output.
Layer = Callable[[int, nn.ModuleList, torch.Tensor], torch.Tensor]


class BlockMoe(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits (B, K); each layer routes each image by itself.

    With ``top_k`` 1 the selected block's output is not weighted, and the gradient of a factor 1 reaches its
    probability, in training and in evaluation. With more, the selected probabilities, normalised, weigh the outputs.

    Args:
        net: a ResNet of basic blocks; of its last ``blocks + tail`` blocks all but the last ``tail`` become the first
            experts.
    """

    def __init__(self, net: Classifier, *, blocks: int, tail: int, experts: int, gate: str, top_k: int):
        super().__init__()
        self.experts, self.top_k = experts, top_k
        end = len(net.trunk.blocks) - tail
        stages, replaced = list(net.trunk.blocks[: end - blocks]), list(net.trunk.blocks[end - blocks : end])
        self.normalize, self.head = net.normalize, net.head
        self.body = nn.Sequential(net.trunk.stem, *stages)
        self.layers = nn.ModuleList(
            nn.ModuleList([block, *(_another(block) for _ in range(experts - 1))]) for block in replaced
        )
        self.tail = nn.Sequential(*net.trunk.blocks[end:])
        initialize(self)
        # After initialize, because a gate keeps its own initial weights.
        self.router = Gates(gate, [block.conv1.in_channels for block in replaced], experts)

    # -- passes ------------------------------------------------------------------------------------------------------
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.routed(x)[0]

    def routed(
        self, x: torch.Tensor, select: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, Routing]:
        """Logits, float32 or wider, and the routing.

        Args:
            select: scores (B, E) and the layer's number to the selected blocks (B, k); those with the highest scores if
                not given.
        """
        routing = Routing([], [])

        def layer(number: int, blocks: nn.ModuleList, h: torch.Tensor) -> torch.Tensor:
            scores = self.router(h, number)
            choice = self.highest(scores) if select is None else select(scores, number)
            routing.scores.append(scores)
            routing.choice.append(choice)
            return combined(blocks, h, scores.softmax(1), choice)

        return at_least_float32(self._passed(x, layer)), routing

    def highest(self, scores: torch.Tensor) -> torch.Tensor:
        """The blocks (B, k) with the highest scores; of equal ones the first."""
        return routes_of(scores)[:, None] if self.top_k == 1 else scores.topk(self.top_k, 1).indices

    def _passed(self, x: torch.Tensor, layer: Layer) -> torch.Tensor:
        h = self.body(self.normalize(x))
        for number, blocks in enumerate(self.layers):
            h = layer(number, blocks, h)
        return self.head(global_average(self.tail(h)))

    def route_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the paths through all layers (B, E^L): sums of log-probabilities; the highest is the path taken.

        Path (e_1, …, e_L) has the number sum_l e_l E^(L - l).
        """
        paths = x.new_zeros(len(x), 1)
        for scores in self.routed(x)[1].scores:
            paths = (paths[:, :, None] + F.log_softmax(scores, 1)[:, None, :]).flatten(1)
        return paths

    def mix(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K), and each block's part of the image's choices (B, L * E), layer after layer: rows sum to 1."""
        logits, routing = self.routed(x)
        used = [F.one_hot(choice, self.experts).sum(1) for choice in routing.choice]
        return logits, torch.cat(used, 1).to(logits.dtype) / (self.top_k * len(self.layers))

    # -- views -------------------------------------------------------------------------------------------------------
    def softly(self, x: torch.Tensor, sharpness: float = 1.0) -> torch.Tensor:
        """Every layer weighs all of its blocks by softmax(scores / sharpness)."""

        def layer(number: int, blocks: nn.ModuleList, h: torch.Tensor) -> torch.Tensor:
            weights = (self.router(h, number) / sharpness).softmax(1)
            outputs = torch.stack([block(h) for block in blocks])
            return (weights.T.to(h.dtype)[..., None, None, None] * outputs).sum(0)

        return self._passed(x, layer)

    def forced(self, x: torch.Tensor, fixed: dict[int, int]) -> tuple[torch.Tensor, Routing]:
        """As :meth:`routed`, with one block for every image in some layers: number of the layer -> of the block."""

        def select(scores: torch.Tensor, layer: int) -> torch.Tensor:
            if layer not in fixed:
                return self.highest(scores)
            return torch.full((len(scores), 1), fixed[layer], device=scores.device)

        return self.routed(x, select)

    def on_route(self, x: torch.Tensor, layer: int, expert: int) -> torch.Tensor:
        """The logits with a block forced, on the condition that the layer's gate selects it."""
        logits, routing = self.forced(x, {layer: expert})
        return constrained(logits, shortfall_of_lead(routing.scores[layer], expert))

    def attack_views(self) -> dict[str, nn.Module]:
        """Soft layers, each block of each layer alone, the same on the condition that it is selected, and all paths."""
        found: dict[str, nn.Module] = {
            views.SOFT: views.Computed(self, lambda model, x: model.softly(x)),
            f"{views.SOFT}-sharp": views.Computed(self, lambda model, x: model.softly(x, SHARPNESS)),
        }
        for layer, e in itertools.product(range(len(self.layers)), range(self.experts)):
            found[f"layer{layer}-expert{e}"] = self._with({layer: e})
            found[f"layer{layer}-joint{e}"] = views.Computed(
                self, lambda model, x, layer=layer, e=e: model.on_route(x, layer, e)
            )
        if len(self.layers) > 1 and self.experts ** len(self.layers) <= MOST_PATHS:
            for path in itertools.product(range(self.experts), repeat=len(self.layers)):
                found["path" + "-".join(map(str, path))] = self._with(dict(enumerate(path)))
        return found

    def _with(self, fixed: dict[int, int]) -> nn.Module:
        return views.Computed(self, lambda model, x: model.forced(x, fixed)[0])


def combined(
    blocks: Sequence[nn.Module], h: torch.Tensor, probabilities: torch.Tensor, choice: torch.Tensor
) -> torch.Tensor:
    """The output of a layer for its input ``h`` (B, C, H, W): each image through the blocks ``choice`` (B, k)."""
    if choice.shape[1] == 1:
        factors = straight_through(probabilities, choice[:, 0])[:, None]
    else:
        selected = probabilities.gather(1, choice)
        factors = selected / (selected.sum(1, keepdim=True) + 1e-5)
    parts = zip(factors.to(h.dtype).T, choice.T, strict=True)
    return sum(factor.view(-1, 1, 1, 1) * dispatch(blocks, h, route) for factor, route in parts)


def noisy(probabilities: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What blocks are selected by in training: p / std(p) + 0.1 noise, all (B, E); std over all entries."""
    return probabilities / probabilities.std().clamp(min=1e-6) + 0.1 * noise


def within_capacity(scores: torch.Tensor, factor: float, rounds: int = 25) -> torch.Tensor:
    """The selected block (B, 1) of scores (B, E), at most max(1, ceil(factor * B / E)) images for each.

    Where more ask for a block, those with the highest scores stay and the others take their next best, for at most so
    many rounds; the last one has no limit.
    """
    capacity = max(1, math.ceil(factor * len(scores) / scores.shape[1]))
    refused = torch.zeros_like(scores, dtype=torch.bool)
    for _ in range(rounds):
        # Whom all have refused takes its best.
        choice = scores.masked_fill(refused & ~refused.all(1, keepdim=True), -torch.inf).argmax(1)
        rank = _rank_in_its_block(scores.gather(1, choice[:, None])[:, 0], choice)
        over = (rank >= capacity) & ~refused.all(1)
        if not over.any():
            break
        refused[over, choice[over]] = True
    return choice[:, None]


def _rank_in_its_block(score: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """How many of the same choice (B,) come before each: by a higher score (B,), or by a lower number."""
    number = torch.arange(len(score), device=score.device)
    before = (score[None] > score[:, None]) | ((score[None] == score[:, None]) & (number[None] < number[:, None]))
    return (before & (choice[None] == choice[:, None])).sum(1)


def _another(block: BasicBlock) -> BasicBlock:
    return BasicBlock(block.conv1.in_channels, block.conv1.out_channels, block.conv1.stride[0])


def blockmoe(
    arch: str,
    num_classes: int,
    *,
    experts: int = 4,
    blocks: int = 1,
    tail: int = 0,
    gate: str = "gap",
    top_k: int = 1,
    **net,
) -> BlockMoe:
    """A net ``arch`` whose last ``blocks`` residual blocks, but for the last ``tail``, are one of ``experts`` each.

    Raises:
        ConfigError: a net that is no ResNet of basic blocks, more blocks than its last stage has, more of ``top_k``
            than experts, or images too small for a convolution as gate.
    """
    dense = nets.build(arch, num_classes, **net)
    if not isinstance(dense.trunk, ResNetTrunk):
        raise ConfigError(f"arch: {arch!r} has no basic blocks to select from; allowed: resnet18, resnet34")
    last = sum(block.conv2.out_channels == dense.trunk.num_features for block in dense.trunk.blocks)
    for key, value, most in (("blocks", blocks, last - tail), ("top_k", top_k, experts)):
        if not 1 <= value <= most:
            raise ConfigError(f"{key}: {value!r} is not allowed; from 1 to {most}")
    side = math.ceil(net["image_size"] / 2 ** (len(STAGE_CHANNELS) - 1))
    if gate == "conv" and side < 3:
        raise ConfigError(f"gate: conv needs maps of 3x3 pixels in the last stage; these have {side}x{side}")
    return BlockMoe(dense, blocks=blocks, tail=tail, experts=experts, gate=gate, top_k=top_k)


MIXTURE = blockmoe
