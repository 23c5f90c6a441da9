"""The MoE-CNN and its training by definition: all experts computed for every image, masked, the selected one kept.

The order of operations is that of ADVMoE's released code: one convolution for all experts, a mask over all their
channels, a gather; nothing in channels-last, which that code does not support; in each attack step the router runs
twice, by itself and inside the model. Two train-mode passes that the released code makes for its log are left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchlib.plain import plain
from moat.models.moe import ChannelExpertConv2d, MoeCnn


class Masked(nn.Module):
    """A copy of an MoE-CNN with shared batch norm that computes all experts, in the order of the batch."""

    def __init__(self, model: MoeCnn):
        super().__init__()
        self.net = plain(model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(x, self.net.router(x))

    def classify(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits of images (B, C, H, W) by scores (B, experts), whose selection has a straight-through gradient."""
        route = scores.argmax(1)
        mask = F.one_hot(route, self.net.experts) + (scores - scores.detach())
        for module in self.net.trunk.modules():
            if isinstance(module, ChannelExpertConv2d):
                module.forward = lambda x, route, gate, conv=module: _masked_conv(conv, x, mask, route)
        return self.net.head(self.net.trunk(self.net.normalize(x), route, None))


def _masked_conv(conv: ChannelExpertConv2d, x: torch.Tensor, mask: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    y = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)
    y = y * mask.repeat_interleave(conv.out_channels, 1)[:, :, None, None]
    return y.view(len(x), conv.experts, conv.out_channels, *y.shape[2:])[torch.arange(len(x)), route]


class MaskedTrainer:
    """ADVMoE's alternating update on a :class:`Masked` model.

    Args:
        recipe: resolved, of ``advmoe``.
        attack: eps, step_size (numbers), steps.
    """

    def __init__(self, model: MoeCnn, recipe: Mapping[str, Any], attack: Mapping[str, Any]):
        self.model, self.recipe, self.attack = Masked(model), recipe, attack
        self.router = self.model.net.router
        of_router = {id(parameter) for parameter in self.router.parameters()}
        backbone = [p for p in self.model.parameters() if id(p) not in of_router]
        self.backbone_optimizer = _sgd(backbone, recipe["optimizer"])
        self.router_optimizer = _sgd(self.router.parameters(), recipe["router_optimizer"])

    def adversarial(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Signed steps that maximize KL(F(x) || F(x')) + KL(G(x) || G(x')) from ``start``."""
        self.model.eval()
        with torch.no_grad():
            clean, clean_scores = self.model(x), self.router(x)
        x_adv = start.clone()
        for _ in range(self.attack["steps"]):
            x_adv = x_adv.detach().requires_grad_()
            loss = _kl(clean_scores, self.router(x_adv)) + _kl(clean, self.model(x_adv))
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + self.attack["step_size"] * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - self.attack["eps"]), x + self.attack["eps"]).clamp(0, 1)
        self.model.train()
        return x_adv.detach()

    def update(self, x: torch.Tensor, y: torch.Tensor, starts: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Backbone, then router, each on an attack of its own from one of the ``starts``."""
        x_adv = self.adversarial(x, starts[0])
        scores = self.router(x)
        logits = self.model.classify(x, scores.detach())
        with torch.no_grad():
            scores_adv = self.router(x_adv)
        logits_adv = self.model.classify(x_adv, scores_adv)
        loss = F.cross_entropy(logits, y) + self.recipe["loss"]["beta"] * _kl(logits, logits_adv) / len(x)
        _descend(self.backbone_optimizer, loss)

        scores_adv = self.router(self.adversarial(x, starts[1]))
        loss = self.recipe["loss"]["alpha"] * F.cross_entropy(scores, y % self.model.net.experts)
        loss = loss + self.recipe["loss"]["beta"] * _kl(scores, scores_adv) / len(x)
        _descend(self.router_optimizer, loss, self.router.parameters(), self.recipe["router_gradient_clip"])


def balance(model: MoeCnn, x: torch.Tensor) -> None:
    """Shift the router's biases until the experts get about equal numbers of ``x``."""
    with torch.no_grad():
        scores = model.eval().route_logits(x)
        # A fresh router's scores differ far more between experts than between images.
        shift, spread = -scores.mean(0), scores.std(0).mean()
        for number in range(200):
            load = F.one_hot((scores + shift).argmax(1), model.experts).to(scores.dtype).mean(0)
            shift += (1 / model.experts - load) * spread / (1 + number / 10)
        model.router.head.linear.bias += shift


def loads(model: MoeCnn, x: torch.Tensor) -> list[int]:
    """The number of images that each expert gets."""
    with torch.no_grad():
        return F.one_hot(model.route_logits(x).argmax(1), model.experts).sum(0).tolist()


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Sum over the batch of KL(softmax p || softmax q)."""
    return F.kl_div(F.log_softmax(q, 1), F.log_softmax(p, 1), log_target=True, reduction="sum")


def _sgd(parameters, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, **{key: options[key] for key in ("lr", "momentum", "weight_decay", "nesterov")})


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, clipped=None, clip: float | None = None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if clipped is not None and clip is not None:
        nn.utils.clip_grad_norm_(clipped, clip)
    optimizer.step()
