"""PGD-10 against three attack libraries, in float32 and attacked in bf16; a TRADES step against the textbook's.

    python benchmarks/attack.py [--widths 64,16] [--rows 4,5,6,7]

Each library is called as its users call it, on the same net with the same weights. Ours includes what an attack costs
beside its steps: folding the batch norm anew, bringing the images into its memory format. Both sides are compared in
the same run: in float64 with the textbook's loop, in float32 by verdicts on a trained net.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchlib import command, peers, records, textbook, timing, trained, updates
from benchlib.plain import plain
from moat.attacks import AttackCopy, for_attack, pgd
from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import ascend, ball, random_start_point
from moat.base.errors import DataError

COLUMNS = records.COLUMNS
# Channels of the first stage -> images attacked at once.
BATCHES = {64: 16, 16: 64, 8: 128}
SETTINGS = {"eps": peers.EPS, "step_size": peers.STEP_SIZE, "steps": peers.STEPS}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--widths", default="64,16", metavar="N,N", help="channels of the first stage; 64 is the full net"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 16 at width 64, 64 at width 16")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")
    parser.add_argument("--rows", default="4,5,6,7", metavar="N,N", help="rows of the table (default: %(default)s)")
    trained.add_arguments(parser)


def measure(arguments) -> list[dict[str, Any]]:
    """Rows 4 to 7 of the table, for each width."""
    numbers = [int(number) for number in arguments.rows.split(",")]
    rows = []
    for width in map(int, arguments.widths.split(",")):
        about = {"batch_size": arguments.batch_size or BATCHES.get(width, 32), "precision": "float32"}
        if {4, 5, 6} & set(numbers):
            rows += _attacks(arguments, width, about, numbers)
        if 7 in numbers:
            rows.append(_trades(arguments, width, about))
    return [row for row in rows if row["id"] in numbers]


# -- PGD-10 ------------------------------------------------------------------
def pgd_calls(model, x, y) -> dict[str, Callable[[], Any]]:
    """Our PGD-10 in "float32", the copy refreshed each time, and in "bf16"."""
    folded, half = AttackCopy(model), for_attack(model, dtype=torch.bfloat16)

    def attacked(net) -> None:
        pgd(net, updates.channels_last(x), y, **SETTINGS)

    calls = {"float32": lambda: attacked(folded.refresh()), "bf16": lambda: attacked(half)}
    return {name: timing.as_in_jobs(call) for name, call in calls.items()}


def _attacks(arguments, width: int, about: dict, numbers: list[int]) -> list[dict[str, Any]]:
    print(f"attack: PGD-10, width {width}, batches of {about['batch_size']}", file=sys.stderr)
    model = updates.resnet18(width).eval()
    x, y = updates.batch(about["batch_size"])
    attacks, versions, missing = peers.ready(model)
    calls = {name: lambda attack=attack: attack(x, y) for name, attack in attacks.items()} | pgd_calls(model, x, y)
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    about = {**about, "peer_versions": versions, "ms_per_image": updates.milliseconds(taken, about["batch_size"])}
    exact = _exactness(model)
    verdicts = _verdicts(arguments, width) if {4, 6} & set(numbers) else {}
    rows = []
    for number, case, peer, contender in _pairs(width):
        if peer in missing:
            rows.append(records.row(arguments.project, number, case, {}, not_measured=missing[peer]))
            continue
        found = timing.ratio(taken[peer], taken[contender])
        facts = {"exact": {**exact, **verdicts.get(contender, {})}, **about}
        if contender == "bf16":
            facts |= {"exact": verdicts.get(contender, {}), "precision": "bf16, scored in float32"}
        rows.append(records.row(arguments.project, number, case, found, **facts))
    return rows


def _pairs(width: int) -> list[tuple[int, str, str, str]]:
    """Row, case, peer, which of ours."""
    name = f"width {width}"
    five = [(5, f"{name}, {peer}", peer, "float32") for peer in ("foolbox", "art")]
    return [(4, name, "torchattacks", "float32"), *five, (6, name, "torchattacks", "bf16")]


def _exactness(model) -> dict[str, Any]:
    """The folded copy's attack and the textbook's on the model itself, both in float64, from one start."""
    model = copy.deepcopy(model).double()
    x, y = updates.batch(8, torch.float64)
    start = (x + (torch.rand_like(x) * 2 - 1) * SETTINGS["eps"]).clamp(0, 1)
    theirs = textbook.pgd(model, x, y, start, **SETTINGS)
    steps = {"step_size": SETTINGS["step_size"], "steps": SETTINGS["steps"]}
    ours = ascend(for_attack(model), start, cross_entropy(y), ball(x, SETTINGS["eps"]), **steps)
    return {"float64_largest_difference": float((ours - theirs).abs().max()), "float64_images": len(x)}


def _verdicts(arguments, width: int) -> dict[str, dict[str, Any]]:
    """On a trained net: which verdicts change when the folded copy is attacked, in float32 or bf16."""
    try:
        model, x, y = trained.load(arguments)
    except DataError as error:
        return dict.fromkeys(("float32", "bf16"), {"verdicts": f"not counted: {error}"})
    trained_width = model.head.in_features // 8
    if width != trained_width:
        model = trained.widened(model, width // trained_width)
    nets = {"model": model, "float32": for_attack(model), "bf16": for_attack(model, dtype=torch.bfloat16)}
    robust = {name: _robust(model, net, x, y) for name, net in nets.items()}
    about = {"verdicts": len(y), "robust_accuracy": float(robust["model"].float().mean())}
    # In float32 the peer is the model itself, unfolded; in bf16 it is the attack in float32.
    return {
        name: {
            **about,
            "verdicts_that_differ": int((robust[name] != robust[peer]).sum()),
            "robust_accuracy_here": float(robust[name].float().mean()),
        }
        for name, peer in (("float32", "model"), ("bf16", "float32"))
    }


def _robust(model, attacked, x, y) -> torch.Tensor:
    """Which images (N,) the model still classifies correctly in float32 after an attack on ``attacked``."""
    right = []
    generator = torch.Generator().manual_seed(0)
    for images, labels in zip(x.split(64), y.split(64), strict=True):
        found = pgd(attacked, images, labels, generator=generator, **SETTINGS)
        with torch.no_grad():
            right.append(model(found).argmax(1) == labels)
    return torch.cat(right)


# -- TRADES ------------------------------------------------------------------
def trades_call(recipe, width: int, x, y) -> Callable[[], Any]:
    """Our update of a ResNet-18; ``recipe``: from :func:`benchlib.updates.standing_still`."""
    return timing.as_in_jobs(updates.repeated(updates.begin("trades", recipe, updates.resnet18(width)), x, y))


def _trades(arguments, width: int, about: dict) -> dict[str, Any]:
    """Row 7: the project's TRADES update against the textbook's."""
    print(f"attack: TRADES, width {width}, batches of {about['batch_size']}", file=sys.stderr)
    recipe = updates.recipe_of(arguments.project, "trades")
    attack = {**updates.attack_of(recipe), "beta": recipe["loss"]["beta"]}
    exact = _same_update(recipe, attack, width)
    still, (x, y) = updates.standing_still(recipe), updates.batch(about["batch_size"])
    model, optimizer = _textbook_side(still, updates.resnet18(width))

    def theirs() -> None:
        start = x + 0.001 * torch.randn_like(x)
        textbook.trades_step(model, optimizer, x, y, start, **attack)

    taken = timing.cpu_seconds({"ours": trades_call(still, width, x, y), "theirs": theirs}, repeats=arguments.repeats)
    found = timing.ratio(taken["theirs"], taken["ours"])
    milliseconds = updates.milliseconds(taken, about["batch_size"])
    return records.row(arguments.project, 7, f"width {width}", found, exact=exact, ms_per_image=milliseconds, **about)


def _textbook_side(recipe, model):
    """The same weights with PyTorch's convolutions, and their optimizer."""
    model = plain(model)
    options = {key: recipe["optimizer"][key] for key in ("lr", "momentum", "weight_decay", "nesterov")}
    return model, torch.optim.SGD(model.parameters(), **options)


def _same_update(recipe, attack, width: int) -> dict[str, float]:
    """The largest difference of the states after one update in float64, at the recipe's learning rate."""
    ours = updates.resnet18(width).double()
    model, optimizer = _textbook_side(recipe, ours)
    method = updates.begin("trades", recipe, ours)
    x, y = updates.batch(8, torch.float64)
    start = random_start_point(x, attack["eps"], "normal", updates.step().generator("attack"))
    textbook.trades_step(model, optimizer, x, y, start, **attack)
    method.update(updates.channels_last(x), y, updates.step())
    return {"float64_largest_difference": updates.largest_difference(method.model, model), "float64_images": 8}


if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
