"""Mixtures of nine and ten full networks: ours against the plain loop over them, and against grouped convolutions.

    python benchmarks/mixture.py [--mixtures dwf,mocse] [--widths 64,16,4]

An attack step is a forward pass and an input gradient in evaluation mode, ours on the copy that attacks run on; an
update is forward and backward of cross-entropy in training mode. All compute the same experts from the same weights.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchlib import command, records, timing, updates
from benchlib.grouped import Grouped
from benchlib.plain import plain
from moat.attacks import for_attack
from moat.kernels import for_training
from moat.models.moe import build_mixture

COLUMNS = (*records.COLUMNS, "grouped_ratio")
ARCHS = {"dwf": "resnet18", "mocse": "preact-resnet18"}
BATCHES = {64: 8, 16: 32, 4: 64}


def add_arguments(parser) -> None:
    parser.add_argument("--mixtures", default="dwf,mocse", metavar="A,B", help="default: %(default)s")
    parser.add_argument("--widths", default="64,16,4", metavar="N,N", help="channels of the first stage")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 8, 32, 64 at widths 64, 16, 4")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")


def measure(arguments) -> list[dict[str, Any]]:
    """Row 8 of the table, for each mixture and width."""
    rows = []
    for kind in arguments.mixtures.split(","):
        for width in map(int, arguments.widths.split(",")):
            rows += _rows(arguments, kind, width)
    return rows


def _rows(arguments, kind: str, width: int) -> list[dict[str, Any]]:
    size = arguments.batch_size or BATCHES.get(width, 32)
    print(f"mixture: {kind}, width {width}, batches of {size}", file=sys.stderr)
    nets, exact = _nets(kind, width), _same(kind, width)
    x, y = updates.batch(size)
    rows = []
    for what, make in WORK.items():
        calls = {name: make(name, nets[name], x, y) for name in nets}
        taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
        facts = {"exact": exact, "batch_size": size, "ms_per_image": updates.milliseconds(taken, size)}
        facts["grouped_ratio"] = timing.ratio(taken["plain"], taken["grouped"])["ratio"]
        facts["precision"] = "float32"
        found = timing.ratio(taken["plain"], taken["ours"])
        rows.append(records.row(arguments.project, 8, f"{kind}, width {width}, {what}", found, **facts))
    return rows


def our_call(kind: str, width: int, what: str, images: int) -> Callable[[], Any]:
    """Our side of a row; ``what``: "update" or "attack step"."""
    return WORK[what]("ours", _nets(kind, width)["ours"], *updates.batch(images))


def _nets(kind: str, width: int, dtype=None) -> dict[str, Any]:
    """The mixture's experts as ours, as a plain loop, and as grouped convolutions: images to (E, B, K)."""
    torch.manual_seed(0)
    ours = for_training(build_mixture(kind, ARCHS[kind], 10, width=width / 64).experts.to(dtype or torch.float32))
    loop, grouped = plain(ours), Grouped(list(ours))
    last = torch.channels_last
    return {"ours": ours.to(memory_format=last), "plain": loop, "grouped": grouped.to(memory_format=last)}


def _update(name: str, net, x, y) -> Callable[[], None]:
    net.train().requires_grad_(True)
    x = x if name == "plain" else updates.channels_last(x)

    def call() -> None:
        net.zero_grad(set_to_none=True)
        _loss(net(x), y).backward()

    return call


def _attack_step(name: str, net, x, y) -> Callable[[], torch.Tensor]:
    net = net.eval() if name == "plain" else for_attack(net)
    x = x if name == "plain" else updates.channels_last(x)

    def call() -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(_loss(net(leaf), y), leaf)[0]

    return call


WORK = {"update": _update, "attack step": _attack_step}


def _loss(logits, y) -> torch.Tensor:
    """Cross-entropy of every expert, so that each computes a gradient."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), (y % logits.shape[2]).repeat(len(logits)))


def _same(kind: str, width: int) -> dict[str, float]:
    """Largest differences in float64 between the plain loop and ours, and between it and the grouped form."""
    x, y = updates.batch(4, torch.float64)
    nets = _nets(kind, width, torch.float64)
    logits = {
        name: net.train()(x if name == "plain" else updates.channels_last(x)).detach() for name, net in nets.items()
    }
    gradients = {name: _attack_step(name, net, x, y)() for name, net in nets.items()}
    return {
        f"float64_{what}_{name}": float((each[name] - each["plain"]).abs().max())
        for what, each in (("logits", logits), ("gradient", gradients))
        for name in ("ours", "grouped")
    }


if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
