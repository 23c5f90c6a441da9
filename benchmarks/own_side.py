"""This checkout's own side of rows 1 to 9, one call at a time: what compare.py runs in each of two checkouts.

    python benchmarks/own_side.py --list
    python benchmarks/own_side.py --case "4: width 16"

It prints "ready" when the case is set up. For every line on stdin the case's call is made once, and its CPU and wall
seconds are printed as JSON.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import attack
import autoattack
import mixture
import moe
from benchlib import command, narrow, trained, updates

Call = Callable[[], Any]
# Of rows 1 to 3: channels of the first stage (the full net), steps of an attack.
WIDTH, STEPS = 64, 10


def _pgd(arguments, width: int, precision: str) -> Call:
    x, y = updates.batch(attack.BATCHES[width])
    return attack.pgd_calls(updates.resnet18(width).eval(), x, y)[precision]


def _trades(arguments, width: int) -> Call:
    recipe = updates.standing_still(updates.recipe_of(arguments.project, "trades"))
    return attack.trades_call(recipe, width, *updates.batch(attack.BATCHES[width]))


def _moe_update(arguments) -> Call:
    return moe.update_call(WIDTH, moe.BATCH, updates.standing_still(moe.recipe_of(arguments.project, "advmoe", STEPS)))


def _moe_attack(arguments, experts: int) -> Call:
    return moe.attack_calls(WIDTH, experts, moe.BATCH, moe.recipe_of(arguments.project, "advmoe", STEPS))[0]["routed"]


def _moe_against_dense(arguments, name: str) -> Call:
    return moe.dense_calls(arguments.project, WIDTH, moe.RECIPES_BATCH, STEPS)[0][name]


def _mixture(arguments, kind: str, width: int, what: str) -> Call:
    return mixture.our_call(kind, width, what, mixture.BATCHES[width])


def _autoattack(arguments, width: int) -> Call:
    model, x, y = autoattack.net_and_images(arguments, str(width))
    return functools.partial(autoattack.our_call("float32"), model, x, y, autoattack.STEPS["square"])


CASES: dict[str, Callable[[argparse.Namespace], Call]] = {
    f"1: width {WIDTH}": _moe_update,
    "2: 2 experts": functools.partial(_moe_attack, experts=2),
    "2: 8 experts": functools.partial(_moe_attack, experts=8),
    "3: routed": functools.partial(_moe_against_dense, name="advmoe"),
    "3: dense": functools.partial(_moe_against_dense, name="trades"),
    # Row 5 has the same own side as row 4.
    **{f"4: width {width}": functools.partial(_pgd, width=width, precision="float32") for width in (64, 16)},
    **{f"6: width {width}": functools.partial(_pgd, width=width, precision="bf16") for width in (64, 16)},
    **{f"7: width {width}": functools.partial(_trades, width=width) for width in (64, 16)},
    **{
        f"8: {kind}, width {width}, {what}": functools.partial(_mixture, kind=kind, width=width, what=what)
        for kind in mixture.ARCHS
        for width in mixture.BATCHES
        for what in mixture.WORK
    },
    **{f"9: width {width}": functools.partial(_autoattack, width=width) for width in (16, 8)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=command.ROOT, metavar="DIR", help="default: this checkout")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--case", choices=CASES, metavar="NAME")
    trained.add_arguments(parser)
    narrow.add_arguments(parser)
    parser.set_defaults(images=128)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(CASES))
        return
    torch.set_num_threads(1)
    call = CASES[arguments.case](arguments)
    print("ready", flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}), flush=True)


if __name__ == "__main__":
    main()
