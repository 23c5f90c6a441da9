"""What routing saves: ADVMoE's training and its attack against compute-all-and-mask, and against dense TRADES.

The peer computes all experts and masks, as the method is defined and released, on the same weights. An expert has half
the dense net's width, however many there are. Both take turns;
that they do the same is checked in the same run, in float64: adversarial images, parameters and buffers after an
update at the recipe's learning rate. Routes are those of a fresh router whose biases balance it.
"""

import copy
import sys
from pathlib import Path
from typing import Any

from moat.benchmarking import records

HELP = "routed MoE training and attack against compute-all-and-mask and dense TRADES"
COLUMNS = records.COLUMNS
# Rows against compute-all-and-mask, which is slow; and the row against dense TRADES, with the batches of all recipes.
BATCH, RECIPES_BATCH = 32, 128


def add_arguments(parser) -> None:
    parser.add_argument("--width", type=int, default=64, metavar="N", help="channels of the first stage (default: 64)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 32, and 128 against dense TRADES")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="of each attack (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")
    parser.add_argument("--rows", default="1,2,3", metavar="N,N", help="of the table (default: %(default)s)")


def measure(arguments) -> dict[str, Any]:
    """Rows 1 to 3 of the table."""
    import torch

    from moat.benchmarking import timing

    torch.set_num_threads(1)
    root = Path(arguments.project)
    wanted, numbers = records.targets(root), [int(number) for number in arguments.rows.split(",")]
    rows = []
    for number, measured in ((1, _update), (2, _attacks), (3, _against_dense)):
        if number in numbers:
            rows += measured(arguments, root, wanted)
    shared = {"precision": "float32", **records.conditions(root, arguments)}
    return {"benchmark": "moe", **timing.machine(torch.device("cpu")), "rows": [{**row, **shared} for row in rows]}


def _recipe(arguments, root: Path, method: str) -> dict[str, Any]:
    from moat.benchmarking import updates

    return updates.recipe_of(root, method, attack={"steps": arguments.steps})


def _model(width: int, experts: int, x, ratio: float = 0.5):
    """A fresh net whose experts get equal shares of ``x``; ``ratio``: an expert's width over the dense net's."""
    import torch

    from moat.benchmarking.masked import balance
    from moat.models.moe import build_moe_cnn

    torch.manual_seed(0)
    model = build_moe_cnn("resnet18", 10, experts=experts, ratio=ratio, width=width / 64).to(x.dtype)
    balance(model, x)
    return model.train()


def _update(arguments, root: Path, wanted) -> list[dict[str, Any]]:
    """Row 1."""
    from moat.benchmarking import timing, updates
    from moat.benchmarking.masked import MaskedTrainer, loads

    print("moat bench moe: the alternating step", file=sys.stderr)
    recipe = _recipe(arguments, root, "advmoe")
    exact = _same_update(arguments, recipe)
    recipe = updates.standing_still(recipe)
    x, y = updates.batch(arguments.batch_size or BATCH)
    model = _model(arguments.width, 2, x)
    theirs = MaskedTrainer(model, recipe, updates.attack_of(recipe))
    load = loads(model.eval(), x)
    method = updates.begin("advmoe", recipe, model)
    ours = timing.as_in_jobs(updates.repeated(method, x, y))
    taken = timing.cpu_seconds(
        {"routed": ours, "masked": lambda: theirs.update(x, y, (_near(x), _near(x)))}, repeats=arguments.repeats
    )
    found = timing.ratio(taken["masked"], taken["routed"])
    about = {"batch_size": len(x), "load": load, "steps": arguments.steps}
    about["ms_per_image"] = updates.milliseconds(taken, len(x))
    return [records.row(wanted, 1, f"width {arguments.width}", found, exact=exact, **about)]


def _near(x):
    """Where the released attack begins."""
    import torch

    return x + 0.001 * torch.randn_like(x)


def _same_update(arguments, recipe) -> dict[str, float]:
    """The largest difference of the states after one update in float64 of 8 images."""
    import torch

    from moat.attacks.parts.steps import random_start_point
    from moat.benchmarking import updates
    from moat.benchmarking.masked import MaskedTrainer

    x, y = updates.batch(8, torch.float64)
    model, attack = _model(arguments.width, 2, x), updates.attack_of(recipe)
    theirs, method = MaskedTrainer(model, recipe, attack), updates.begin("advmoe", recipe, model)
    starts = [
        random_start_point(x, attack["eps"], "normal", updates.step().generator(purpose))
        for purpose in ("attack", "router attack")
    ]
    theirs.update(x, y, tuple(starts))
    method.update(updates.channels_last(x), y, updates.step())
    return {"float64_largest_difference": updates.largest_difference(model, theirs.model.net), "float64_images": 8}


def _attacks(arguments, root: Path, wanted) -> list[dict[str, Any]]:
    """Row 2."""
    return [_attack(arguments, root, wanted, experts) for experts in (2, 8)]


def _attack(arguments, root: Path, wanted, experts: int) -> dict[str, Any]:
    """A whole attack of ADVMoE, divided by its steps."""
    from moat.benchmarking import timing, updates

    print(f"moat bench moe: the attack, {experts} experts", file=sys.stderr)
    recipe, size = _recipe(arguments, root, "advmoe"), arguments.batch_size or BATCH
    calls, load = attack_calls(arguments.width, experts, size, recipe)
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    found = timing.ratio(taken["masked"], taken["routed"])
    per_step = updates.milliseconds(taken, size * arguments.steps)
    exact = _same_images(arguments, recipe, experts)
    about = {"batch_size": size, "load": load, "steps": arguments.steps, "ms_per_image_and_step": per_step}
    return records.row(wanted, 2, f"{experts} experts", found, exact=exact, **about)


def attack_calls(width: int, experts: int, images: int, recipe, ratio: float = 0.5) -> tuple[dict[str, Any], list[int]]:
    """ADVMoE's attack on a batch, "routed" and "masked", on the same weights; and how many images each expert gets."""
    import torch

    from moat.benchmarking import timing, updates
    from moat.benchmarking.masked import MaskedTrainer, loads

    x, y = updates.batch(images)
    model = _model(width, experts, x, ratio)
    load = loads(copy.deepcopy(model).eval(), x)
    method, theirs = updates.begin("advmoe", recipe, model), MaskedTrainer(model, recipe, updates.attack_of(recipe))
    last, generator = updates.channels_last(x), torch.Generator()
    calls = {
        "routed": timing.as_in_jobs(lambda: method.adversarial(last, y, generator)),
        "masked": lambda: theirs.adversarial(x, _near(x)),
    }
    return calls, load


def _same_images(arguments, recipe, experts: int) -> dict[str, float]:
    """The largest difference of the adversarial images in float64 of 8 images."""
    import torch

    from moat.attacks.parts.steps import random_start_point
    from moat.benchmarking import updates
    from moat.benchmarking.masked import MaskedTrainer

    x, y = updates.batch(8, torch.float64)
    model, attack = _model(arguments.width, experts, x), updates.attack_of(recipe)
    method, theirs = updates.begin("advmoe", recipe, model), MaskedTrainer(model, recipe, attack)
    start = random_start_point(x, attack["eps"], "normal", torch.Generator().manual_seed(1))
    ours = method.adversarial(updates.channels_last(x), y, torch.Generator().manual_seed(1))
    difference = float((ours - theirs.adversarial(x, start)).abs().max())
    return {"float64_largest_difference": difference, "float64_images": 8}


def _against_dense(arguments, root: Path, wanted) -> list[dict[str, Any]]:
    """Row 3."""
    import torch

    from moat.benchmarking import timing, updates
    from moat.benchmarking.masked import loads
    from moat.models import nets

    print("moat bench moe: against dense TRADES", file=sys.stderr)
    x, y = updates.batch(arguments.batch_size or RECIPES_BATCH)
    model = _model(arguments.width, 2, x)
    load = loads(copy.deepcopy(model).eval(), x)
    torch.manual_seed(0)
    dense = nets.build("resnet18", 10, width=arguments.width / 64)
    calls = {
        name: updates.repeated(updates.begin(name, updates.standing_still(_recipe(arguments, root, name)), net), x, y)
        for name, net in (("advmoe", model), ("trades", dense))
    }
    calls = {name: timing.as_in_jobs(call) for name, call in calls.items()}
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    found = timing.ratio(taken["trades"], taken["advmoe"])
    about = {"batch_size": len(x), "load": load, "steps": arguments.steps}
    about["ms_per_image"] = updates.milliseconds(taken, len(x))
    case = f"width {arguments.width}" + (f", batches of {len(x)}" if len(x) != RECIPES_BATCH else "")
    return [records.row(wanted, 3, case, found, **about)]
