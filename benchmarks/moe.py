"""What routing saves: the MoE-CNN against itself with every expert computed and masked.

    python benchmarks/moe.py [--arch resnet18] [--widths 1.0 0.25] [--experts 2 4 8] [--batch 32] [--repeats 5]

Prints JSON. CPU seconds of this process (one thread) per image for one attack step (forward and input gradient in
evaluation mode) and one training step (forward and backward in train mode), both through the router's
straight-through gradient. The peer computes all experts, multiplies by the one-hot of the route and gathers the
selected channels, on the same weights in the same memory format; the two take turns, medians are reported, and the
largest difference of their logits. Routes are those of a freshly initialised router whose biases balance it.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from moat.moe import ChannelExpertConv2d, MoeCnn, build_moe_cnn
from moat.nets import count_macs


class Masked(nn.Module):
    """A copy of a MoE-CNN that computes every expert for every image."""

    def __init__(self, model: MoeCnn):
        super().__init__()
        self.net = copy.deepcopy(model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.net.route_logits(x)
        route = scores.argmax(1)
        mask = F.one_hot(route, self.net.experts) + (scores - scores.detach())
        for module in self.net.trunk.modules():
            if isinstance(module, ChannelExpertConv2d):
                module.forward_sorted = lambda x, groups, gate, conv=module: _masked_conv(conv, x, mask, route)
        return self.net.head(self.net.trunk(self.net.normalize(x), None, None))


def _masked_conv(conv: ChannelExpertConv2d, x: torch.Tensor, mask: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    y = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)
    y = y * mask.repeat_interleave(conv.out_channels, 1)[:, :, None, None]
    return y.view(len(x), conv.experts, conv.out_channels, *y.shape[2:])[torch.arange(len(x)), route]


def balance(model: MoeCnn, x: torch.Tensor) -> None:
    """Shift the router's biases until the experts get about equal numbers of ``x``."""
    with torch.no_grad():
        scores = model.eval().route_logits(x)
        # The scores of a fresh router differ far more between experts than between images.
        shift, spread = -scores.mean(0), scores.std(0).mean()
        for number in range(200):
            load = F.one_hot((scores + shift).argmax(1), model.experts).float().mean(0)
            shift += (1 / model.experts - load) * spread / (1 + number / 10)
        model.router.head.linear.bias += shift


def attack_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    leaf = x.detach().clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)


def train_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()


def cpu_seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(arch: str, width: float, experts: int, batch: int, repeats: int) -> list[dict]:
    """The rows of one net: attack step and train step, routed and masked."""
    torch.manual_seed(0)
    model = build_moe_cnn(arch, 10, experts=experts, ratio=1 / experts, width=width)
    model = model.to(memory_format=torch.channels_last)
    x = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch) % 10
    balance(model, x)
    models = {"routed": model, "masked": Masked(model)}
    with torch.no_grad():
        difference = models["routed"](x) - models["masked"].eval()(x)
    described = {
        "net": f"{arch}, width {width}, {experts} experts of ratio {1 / experts}",
        "batch": batch,
        "repeats": repeats,
        "load": F.one_hot(model.route_logits(x).argmax(1), experts).sum(0).tolist(),
        "largest_logit_difference": float(difference.abs().max()),
        "macs_per_image": {kind: count_macs(each, 32, 3) for kind, each in models.items()},
    }
    rows = []
    for name, step, training in (("attack step", attack_step, False), ("train step", train_step, True)):
        for each in models.values():
            each.train(training).requires_grad_(training)
        seconds: dict[str, list[float]] = {kind: [] for kind in models}
        for repeat in range(repeats + 1):
            for kind, each in models.items():
                measured = cpu_seconds(lambda each=each, step=step: step(each, x, y))
                if repeat:
                    seconds[kind].append(measured / batch)
        median = {kind: statistics.median(values) for kind, values in seconds.items()}
        rows.append(
            {
                **described,
                "step": name,
                "milliseconds_per_image": {kind: round(1000 * value, 3) for kind, value in median.items()},
                "ratio_masked_to_routed": round(median["masked"] / median["routed"], 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 0.25])
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for width in options.widths
        for experts in options.experts
        for row in compare(options.arch, width, experts, options.batch, options.repeats)
    ]
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), "threads": 1}
    print(json.dumps({**machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
