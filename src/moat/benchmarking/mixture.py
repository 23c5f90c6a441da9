"""Mixtures of nine and ten full networks: ours against the plain loop over them, and against grouped convolutions.

An attack step is forward and input gradient in evaluation mode, ours on the copy that attacks are run on; an update is
forward and backward of cross-entropy in training mode. All compute the same experts from the same weights.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moat.benchmarking import records

HELP = "mixtures of nine and ten networks against the plain loop over them"
COLUMNS = (*records.COLUMNS, "grouped_ratio")
ARCHS = {"dwf": "resnet18", "mocse": "preact-resnet18"}
BATCHES = {64: 8, 16: 32, 4: 64}


def add_arguments(parser) -> None:
    parser.add_argument("--mixtures", default="dwf,mocse", metavar="A,B", help="default: %(default)s")
    parser.add_argument("--widths", default="64,16,4", metavar="N,N", help="channels of the first stage")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 8, 32, 64 at widths 64, 16, 4")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")


def measure(arguments) -> dict[str, Any]:
    """Row 8 of the table, for each mixture and width."""
    import torch

    from moat.benchmarking import timing

    torch.set_num_threads(1)
    root = Path(arguments.project)
    wanted = records.targets(root)
    rows = []
    for kind in arguments.mixtures.split(","):
        for width in map(int, arguments.widths.split(",")):
            rows += _rows(arguments, wanted, kind, width)
    shared = {"precision": "float32", **records.conditions(root, arguments)}
    return {"benchmark": "mixture", **timing.machine(torch.device("cpu")), "rows": [{**row, **shared} for row in rows]}


def _rows(arguments, wanted, kind: str, width: int) -> list[dict[str, Any]]:
    from moat.benchmarking import timing, updates

    size = arguments.batch_size or BATCHES.get(width, 32)
    print(f"moat bench mixture: {kind}, width {width}, batches of {size}", file=sys.stderr)
    nets, exact = _nets(kind, width), _same(kind, width)
    x, y = updates.batch(size)
    rows = []
    for what, make in (("update", _update), ("attack step", _attack_step)):
        calls = {name: make(name, nets[name], x, y) for name in nets}
        taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
        facts = {"exact": exact, "batch_size": size, "ms_per_image": updates.milliseconds(taken, size)}
        facts["grouped_ratio"] = timing.ratio(taken["plain"], taken["grouped"])["ratio"]
        found = timing.ratio(taken["plain"], taken["ours"])
        rows.append(records.row(wanted, 8, f"{kind}, width {width}, {what}", found, **facts))
    return rows


def _nets(kind: str, width: int, dtype=None) -> dict[str, Any]:
    """The mixture's experts as ours, as a plain loop, and as grouped convolutions: images to (E, B, K)."""
    import torch

    from moat.benchmarking.grouped import Grouped
    from moat.benchmarking.plain import plain
    from moat.models.moe import build_mixture

    torch.manual_seed(0)
    ours = build_mixture(kind, ARCHS[kind], 10, width=width / 64).experts.to(dtype or torch.float32)
    loop, grouped = plain(ours), Grouped(list(ours))
    loop.forward = lambda x: torch.stack([expert(x) for expert in loop])
    last = torch.channels_last
    return {"ours": ours.to(memory_format=last), "plain": loop, "grouped": grouped.to(memory_format=last)}


def _update(name: str, net, x, y) -> Callable[[], None]:
    net.train().requires_grad_(True)
    x = x if name == "plain" else _channels_last(x)

    def call() -> None:
        net.zero_grad(set_to_none=True)
        _loss(net(x), y).backward()

    return call


def _attack_step(name: str, net, x, y) -> Callable[[], Any]:
    import torch

    from moat.attacks import for_attack

    net = net.eval() if name == "plain" else for_attack(net)
    x = x if name == "plain" else _channels_last(x)

    def call():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(_loss(net(leaf), y), leaf)[0]

    return call


def _loss(logits, y):
    """Cross-entropy of every expert, so that each computes a gradient."""
    import torch

    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), (y % logits.shape[2]).repeat(len(logits)))


def _channels_last(x):
    from moat.benchmarking import updates

    return updates.channels_last(x)


def _same(kind: str, width: int) -> dict[str, float]:
    """Largest differences in float64, of ours and of the grouped form to the plain loop."""
    import torch

    from moat.benchmarking import updates

    x, y = updates.batch(4, torch.float64)
    nets = _nets(kind, width, torch.float64)
    logits = {name: net.train()(x if name == "plain" else _channels_last(x)).detach() for name, net in nets.items()}
    gradients = {name: _attack_step(name, net, x, y)() for name, net in nets.items()}
    return {
        f"float64_{what}_{name}": float((each[name] - each["plain"]).abs().max())
        for what, each in (("logits", logits), ("gradient", gradients))
        for name in ("ours", "grouped")
    }
