"""PGD-10 against three attack libraries, in float32 and attacked in bf16; a TRADES step against the textbook's.

Each library is called as its users call it, on the same net with the same weights. Ours includes what an attack costs
beside its steps: the batch norm folded anew, the images brought into its memory format. That both do the same is
checked in the same run: in float64 against the textbook's loop, in float32 by verdicts on a trained net.
"""

import sys
from pathlib import Path
from typing import Any

from moat.benchmarking import records, trained

HELP = "PGD-10 against torchattacks, foolbox and ART; a TRADES step against the textbook's"
COLUMNS = records.COLUMNS
# Channels of the first stage -> images attacked at once.
BATCHES = {64: 16, 16: 64, 8: 128}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--widths", default="64,16", metavar="N,N", help="channels of the first stage; 64 is the full net"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 16 at width 64, 64 at width 16")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")
    parser.add_argument("--rows", default="4,5,6,7", metavar="N,N", help="of the table (default: %(default)s)")
    trained.add_arguments(parser)


def measure(arguments) -> dict[str, Any]:
    """Rows 4 to 7 of the table, for each width."""
    import torch

    from moat.benchmarking import timing

    torch.set_num_threads(1)
    root = Path(arguments.project)
    wanted, numbers = records.targets(root), [int(number) for number in arguments.rows.split(",")]
    rows = []
    for width in map(int, arguments.widths.split(",")):
        about = {"batch_size": arguments.batch_size or BATCHES.get(width, 32), "precision": "float32"}
        if {4, 5, 6} & set(numbers):
            rows += _attacks(arguments, wanted, width, about, numbers)
        if 7 in numbers:
            rows.append(_trades(arguments, root, wanted, width, about))
    rows = [row for row in rows if row["id"] in numbers]
    shared = records.conditions(root, arguments)
    return {"benchmark": "attack", **timing.machine(torch.device("cpu")), "rows": [{**row, **shared} for row in rows]}


def _attacks(arguments, wanted, width: int, about: dict, numbers: list[int]) -> list[dict[str, Any]]:
    import torch

    from moat.attacks import AttackCopy, pgd
    from moat.benchmarking import peers, timing, updates
    from moat.kernels.low_precision import for_low_precision_attack
    from moat.models import nets

    print(f"moat bench attack: PGD-10, width {width}, batches of {about['batch_size']}", file=sys.stderr)
    torch.manual_seed(0)
    model = nets.build("resnet18", 10, width=width / 64).eval()
    x, y = updates.batch(about["batch_size"])
    attacks, versions, missing = peers.ready(model)
    calls = {name: lambda attack=attack: attack(x, y) for name, attack in attacks.items()}
    folded, half = AttackCopy(model), for_low_precision_attack(model)
    settings = {"eps": peers.EPS, "step_size": peers.STEP_SIZE, "steps": peers.STEPS}

    def ours(net) -> None:
        pgd(net, updates.channels_last(x), y, **settings)

    mine = {"float32": lambda: ours(folded.refresh()), "bf16": lambda: ours(half)}
    calls |= {name: timing.as_in_jobs(call) for name, call in mine.items()}
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    about = {**about, "peer_versions": versions, "ms_per_image": updates.milliseconds(taken, about["batch_size"])}
    exact = _exactness(model, settings)
    verdicts = _verdicts(arguments, width, settings) if {4, 6} & set(numbers) else {}
    rows = []
    for number, case, peer, contender in _pairs(width):
        if peer in missing:
            rows.append(records.row(wanted, number, case, {}, not_measured=missing[peer]))
            continue
        found = timing.ratio(taken[peer], taken[contender])
        facts = {"exact": {**exact, **verdicts.get(contender, {})}, **about}
        if contender == "bf16":
            facts |= {"exact": verdicts.get(contender, {}), "precision": "bf16, judged in float32"}
        rows.append(records.row(wanted, number, case, found, **facts))
    return rows


def _pairs(width: int) -> list[tuple[int, str, str, str]]:
    """Row, case, peer, which of ours."""
    name = f"width {width}"
    five = [(5, f"{name}, {peer}", peer, "float32") for peer in ("foolbox", "art")]
    return [(4, name, "torchattacks", "float32"), *five, (6, name, "torchattacks", "bf16")]


def _exactness(model, settings) -> dict[str, Any]:
    """The folded copy's attack and the textbook's on the model itself, both in float64, from one start."""
    import copy

    import torch

    from moat.attacks import for_attack
    from moat.attacks.parts.objectives import cross_entropy
    from moat.attacks.parts.steps import ascend
    from moat.benchmarking import textbook, updates

    model = copy.deepcopy(model).double()
    x, y = updates.batch(8, torch.float64)
    start = (x + (torch.rand_like(x) * 2 - 1) * settings["eps"]).clamp(0, 1)
    theirs = textbook.pgd(model, x, y, start, **settings)
    ours = ascend(for_attack(model), x, start, cross_entropy(y), **settings)
    return {"float64_largest_difference": float((ours - theirs).abs().max()), "float64_images": len(x)}


def _verdicts(arguments, width: int, settings) -> dict[str, dict[str, Any]]:
    """Of a trained net: which verdicts an attack on its folded copy, in float32 or bf16, changes."""

    from moat.attacks import for_attack
    from moat.base.errors import DataError
    from moat.kernels.low_precision import for_low_precision_attack

    try:
        model, x, y = trained.load(arguments)
    except DataError as error:
        return dict.fromkeys(("float32", "bf16"), {"verdicts": f"not counted: {error}"})
    trained_width = model.head.in_features // 8
    if width != trained_width:
        model = trained.widened(model, width // trained_width)
    robust = {
        name: _robust(model, net, x, y, settings)
        for name, net in (("model", model), ("float32", for_attack(model)), ("bf16", for_low_precision_attack(model)))
    }
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


def _robust(model, attacked, x, y, settings):
    """Which images (N,) the model still gets right in float32 when they were attacked on ``attacked``."""
    import torch

    from moat.attacks import pgd

    right = []
    generator = torch.Generator().manual_seed(0)
    for images, labels in zip(x.split(64), y.split(64), strict=True):
        found = pgd(attacked, images, labels, generator=generator, **settings)
        with torch.no_grad():
            right.append(model(found).argmax(1) == labels)
    return torch.cat(right)


def _trades(arguments, root: Path, wanted, width: int, about: dict) -> dict[str, Any]:
    """Row 7: the project's TRADES update against the textbook's."""
    import torch

    from moat.benchmarking import textbook, timing, updates

    print(f"moat bench attack: TRADES, width {width}, batches of {about['batch_size']}", file=sys.stderr)
    recipe = updates.recipe_of(root, "trades")
    attack = {**updates.attack_of(recipe), "beta": recipe["loss"]["beta"]}
    exact = _same_update(recipe, attack, width)
    method, model, optimizer = _both(updates.standing_still(recipe), width, torch.float32)
    x, y = updates.batch(about["batch_size"])

    def theirs() -> None:
        start = x + 0.001 * torch.randn_like(x)
        textbook.trades_step(model, optimizer, x, y, start, **attack)

    calls = {"ours": timing.as_in_jobs(updates.repeated(method, x, y)), "theirs": theirs}
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    found = timing.ratio(taken["theirs"], taken["ours"])
    milliseconds = updates.milliseconds(taken, about["batch_size"])
    return records.row(wanted, 7, f"width {width}", found, exact=exact, ms_per_image=milliseconds, **about)


def _both(recipe, width: int, dtype):
    """The method on its model; and the same model with PyTorch's convolutions and its optimizer."""
    import torch

    from moat.benchmarking import updates
    from moat.benchmarking.plain import plain
    from moat.models import nets

    torch.manual_seed(0)
    ours = nets.build("resnet18", 10, width=width / 64).to(dtype)
    theirs = plain(ours)
    method = updates.begin("trades", recipe, ours)
    options = {key: recipe["optimizer"][key] for key in ("lr", "momentum", "weight_decay", "nesterov")}
    return method, theirs, torch.optim.SGD(theirs.parameters(), **options)


def _same_update(recipe, attack, width: int) -> dict[str, float]:
    """The largest difference of the states after one update in float64, at the recipe's learning rate."""
    import torch

    from moat.attacks.parts.steps import random_start_point
    from moat.benchmarking import textbook, updates

    method, model, optimizer = _both(recipe, width, torch.float64)
    x, y = updates.batch(8, torch.float64)
    start = random_start_point(x, attack["eps"], "normal", updates.step().generator("attack"))
    textbook.trades_step(model, optimizer, x, y, start, **attack)
    method.update(updates.channels_last(x), y, updates.step())
    return {"float64_largest_difference": updates.largest_difference(method.model, model), "float64_images": 8}
