"""What routing saves: ADVMoE's training and its attack against compute-all-and-mask, and against dense TRADES.

    python benchmarks/moe.py [--rows 1,2,3]

The peer computes all experts and masks, as the method is defined and released, on the same weights. An expert has half
the dense net's width, however many there are. Both sides are compared in the same run, in float64: adversarial images,
and parameters and buffers after an update at the recipe's learning rate. Routes are those of a fresh router whose
biases balance it.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchlib import command, records, timing, updates
from benchlib.masked import MaskedTrainer, balance, loads
from moat import models
from moat.attacks.parts.steps import random_start_point

COLUMNS = records.COLUMNS
# Rows against compute-all-and-mask, which is slow; and the row against dense TRADES, with the batches of all recipes.
BATCH, RECIPES_BATCH = 32, 128


def add_arguments(parser) -> None:
    parser.add_argument("--width", type=int, default=64, metavar="N", help="channels of the first stage (default: 64)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 32, and 128 against dense TRADES")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps of each attack (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")
    parser.add_argument("--rows", default="1,2,3", metavar="N,N", help="rows of the table (default: %(default)s)")


def measure(arguments) -> list[dict[str, Any]]:
    """Rows 1 to 3 of the table."""
    numbers = [int(number) for number in arguments.rows.split(",")]
    rows = []
    for number, measured in ((1, _update), (2, _attacks), (3, _against_dense)):
        if number in numbers:
            rows += measured(arguments)
    return [{**row, "precision": "float32"} for row in rows]


def recipe_of(project, method: str, steps: int) -> dict[str, Any]:
    return updates.recipe_of(project, method, attack={"steps": steps})


def moe_cnn(width: int, experts: int, x, ratio: float = 0.5):
    """A fresh net whose experts get equal shares of ``x``; ``ratio``: an expert's width over the dense net's."""
    torch.manual_seed(0)
    model = models.build_moe_cnn("resnet18", 10, experts=experts, ratio=ratio, width=width / 64).to(x.dtype)
    balance(model, x)
    return model.train()


# -- row 1: the alternating update --------------------------------------------
def update_call(width: int, images: int, recipe) -> Callable[[], Any]:
    """Our update of ADVMoE with two experts; ``recipe``: from :func:`benchlib.updates.standing_still`."""
    x, y = updates.batch(images)
    return timing.as_in_jobs(updates.repeated(updates.begin("advmoe", recipe, moe_cnn(width, 2, x)), x, y))


def _update(arguments) -> list[dict[str, Any]]:
    print("moe: the alternating step", file=sys.stderr)
    recipe = recipe_of(arguments.project, "advmoe", arguments.steps)
    exact = _same_update(arguments, recipe)
    recipe = updates.standing_still(recipe)
    x, y = updates.batch(arguments.batch_size or BATCH)
    model = moe_cnn(arguments.width, 2, x)
    theirs = MaskedTrainer(model, recipe, updates.attack_of(recipe))
    calls = {
        "routed": update_call(arguments.width, len(x), recipe),
        "masked": lambda: theirs.update(x, y, (_near(x), _near(x))),
    }
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    found = timing.ratio(taken["masked"], taken["routed"])
    about = {"batch_size": len(x), "load": loads(model.eval(), x), "steps": arguments.steps}
    about["ms_per_image"] = updates.milliseconds(taken, len(x))
    return [records.row(arguments.project, 1, f"width {arguments.width}", found, exact=exact, **about)]


def _near(x) -> torch.Tensor:
    """Where the released attack begins."""
    return x + 0.001 * torch.randn_like(x)


def _same_update(arguments, recipe) -> dict[str, float]:
    """The largest difference of the states after one update in float64 of 8 images."""
    x, y = updates.batch(8, torch.float64)
    model, attack = moe_cnn(arguments.width, 2, x), updates.attack_of(recipe)
    theirs, method = MaskedTrainer(model, recipe, attack), updates.begin("advmoe", recipe, model)
    starts = [
        random_start_point(x, attack["eps"], "normal", updates.step().generator(purpose))
        for purpose in ("attack", "router attack")
    ]
    theirs.update(x, y, tuple(starts))
    method.update(updates.channels_last(x), y, updates.step())
    return {"float64_largest_difference": updates.largest_difference(model, theirs.model.net), "float64_images": 8}


# -- row 2: the attack --------------------------------------------------------
def attack_calls(width: int, experts: int, images: int, recipe, ratio: float = 0.5) -> tuple[dict[str, Any], list[int]]:
    """ADVMoE's attack on a batch, "routed" and "masked", on the same weights; and how many images each expert gets."""
    x, y = updates.batch(images)
    model = moe_cnn(width, experts, x, ratio)
    load = loads(copy.deepcopy(model).eval(), x)
    method, theirs = updates.begin("advmoe", recipe, model), MaskedTrainer(model, recipe, updates.attack_of(recipe))
    last, generator = updates.channels_last(x), torch.Generator()
    calls = {
        "routed": timing.as_in_jobs(lambda: method.adversarial(last, y, generator)),
        "masked": lambda: theirs.adversarial(x, _near(x)),
    }
    return calls, load


def _attacks(arguments) -> list[dict[str, Any]]:
    return [_attack(arguments, experts) for experts in (2, 8)]


def _attack(arguments, experts: int) -> dict[str, Any]:
    """A whole attack of ADVMoE, divided by its steps."""
    print(f"moe: the attack, {experts} experts", file=sys.stderr)
    recipe = recipe_of(arguments.project, "advmoe", arguments.steps)
    size = arguments.batch_size or BATCH
    calls, load = attack_calls(arguments.width, experts, size, recipe)
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    found = timing.ratio(taken["masked"], taken["routed"])
    per_step = updates.milliseconds(taken, size * arguments.steps)
    exact = _same_images(arguments, recipe, experts)
    about = {"batch_size": size, "load": load, "steps": arguments.steps, "ms_per_image_and_step": per_step}
    return records.row(arguments.project, 2, f"{experts} experts", found, exact=exact, **about)


def _same_images(arguments, recipe, experts: int) -> dict[str, float]:
    """The largest difference of the adversarial images in float64 of 8 images."""
    x, y = updates.batch(8, torch.float64)
    model, attack = moe_cnn(arguments.width, experts, x), updates.attack_of(recipe)
    method, theirs = updates.begin("advmoe", recipe, model), MaskedTrainer(model, recipe, attack)
    start = random_start_point(x, attack["eps"], "normal", torch.Generator().manual_seed(1))
    ours = method.adversarial(updates.channels_last(x), y, torch.Generator().manual_seed(1))
    difference = float((ours - theirs.adversarial(x, start)).abs().max())
    return {"float64_largest_difference": difference, "float64_images": 8}


# -- row 3: against dense TRADES ----------------------------------------------
def dense_calls(project, width: int, images: int, steps: int) -> tuple[dict[str, Any], list[int]]:
    """Updates of "advmoe" and of "trades" on a dense net, both ours; and how many images each expert gets."""
    x, y = updates.batch(images)
    model = moe_cnn(width, 2, x)
    load = loads(copy.deepcopy(model).eval(), x)
    nets = {"advmoe": model, "trades": updates.resnet18(width)}
    calls = {}
    for name, net in nets.items():
        recipe = updates.standing_still(recipe_of(project, name, steps))
        calls[name] = timing.as_in_jobs(updates.repeated(updates.begin(name, recipe, net), x, y))
    return calls, load


def _against_dense(arguments) -> list[dict[str, Any]]:
    print("moe: against dense TRADES", file=sys.stderr)
    size = arguments.batch_size or RECIPES_BATCH
    calls, load = dense_calls(arguments.project, arguments.width, size, arguments.steps)
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    found = timing.ratio(taken["trades"], taken["advmoe"])
    about = {"batch_size": size, "load": load, "steps": arguments.steps}
    about["ms_per_image"] = updates.milliseconds(taken, size)
    case = f"width {arguments.width}" + (f", batches of {size}" if size != RECIPES_BATCH else "")
    return [records.row(arguments.project, 3, case, found, **about)]


if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
