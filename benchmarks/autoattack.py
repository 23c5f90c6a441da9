"""AutoAttack against the package ``pyautoattack`` as its users call it, in time and in verdicts.

    python benchmarks/autoattack.py [--cases 16,8,64-steps,undefended] --record

Both attack the same trained net, slice by slice of its test images in turn, with the same seed, in one batch each;
whatever either finds is scored by the net itself in float32. Ours includes making the copy that is attacked. At full
width a run takes hours: there the steps are timed on examples that stay robust, with squares of Square's sizes, and
weighted by their numbers in AutoAttack.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack

from benchlib import command, narrow, records, timing, trained
from moat import attacks
from moat.attacks.autoattack.adapter import Attacked
from moat.attacks.autoattack.apgd import ApgdTargeted
from moat.attacks.autoattack.fab import Fab
from moat.attacks.autoattack.square import SquareSearch

COLUMNS = (*records.COLUMNS, "differences", "robust_accuracy")
EPS = 8 / 255
# For an example that stays robust: gradient steps of APGD on cross-entropy and on nine targets, steps of FAB, queries.
STEPS = {"apgd": 10 * 101, "fab": 9 * 100, "square": 5000}
# Steps that are timed where not all are run.
COUNTED = {"apgd": 5, "fab": 4, "square": 40}
UNDEFENDED = Path("results/mini/runs/cifar10-jpeg/resnet18/standard/seed0")


def add_arguments(parser) -> None:
    what = "width of a net; 64-steps: without verdicts; undefended: an undefended net (default: %(default)s)"
    parser.add_argument("--cases", default="16,8,64-steps,undefended", metavar="A,B", help=what)
    parser.add_argument("--slices", type=int, default=4, metavar="N", help="of the images; repeats of the steps")
    parser.add_argument("--queries", type=int, default=5000, metavar="N", help="of Square, on both sides")
    parser.add_argument("--undefended", type=Path, default=UNDEFENDED, metavar="DIR", help="a run without defence")
    trained.add_arguments(parser)
    narrow.add_arguments(parser)
    parser.set_defaults(images=128)


def measure(arguments) -> list[dict[str, Any]]:
    """Rows 9, 10 and 11 of the table."""
    rows = []
    for case in arguments.cases.split(","):
        print(f"autoattack: {case}", file=sys.stderr)
        rows += _by_steps(arguments) if case == "64-steps" else _whole(arguments, case)
    return rows


# -- whole runs ---------------------------------------------------------------
def _whole(arguments, case: str) -> list[dict[str, Any]]:
    """Rows of whole runs, of defended nets at width 16 and 64 in both precisions."""
    model, x, y = net_and_images(arguments, case)
    calls = {"package": _package, "float32": our_call("float32")}
    if case in ("16", "64"):
        calls["bf16"] = our_call("bf16")
    taken = {name: [] for name in calls}
    robust = {name: [] for name in calls}
    for images, labels in zip(x.chunk(arguments.slices), y.chunk(arguments.slices), strict=True):
        for name, call in calls.items():
            started = time.process_time()
            robust[name].append(call(model, images, labels, arguments.queries))
            taken[name].append(time.process_time() - started)
        print({name: round(values[-1], 1) for name, values in taken.items()}, file=sys.stderr)
    verdicts = {name: torch.cat(values) for name, values in robust.items()}
    shares = {name: float(each.float().mean()) for name, each in verdicts.items()}
    rows = []
    for name in calls.keys() - {"package"}:
        differences = int((verdicts[name] != verdicts["package"]).sum())
        points = 100 * abs(shares[name] - shares["package"])
        facts = {
            "differences": differences, "images": len(y), "queries": arguments.queries, "robust_accuracy": shares[name],
            "robust_accuracy_of_package": shares["package"], "seconds": taken, "slices": arguments.slices,
            "exact": f"{differences} of {len(y)} verdicts differ; robust accuracy differs by {points:.2f} points",
            "precision": "float32" if name == "float32" else "bf16 gradients, scored in float32",
        }  # fmt: skip
        found = timing.ratio(taken["package"], taken[name])
        rows.append(records.row(arguments.project, *_row_of(case, name), found, **facts))
    return rows


def _row_of(case: str, precision: str) -> tuple[int, str]:
    if precision == "bf16":
        return 10, f"width {case}"
    return (11, "") if case == "undefended" else (9, f"width {case}")


def net_and_images(arguments, case: str):
    """A net as its users have it, in evaluation mode with gradients for its parameters, and test images."""
    if case == "undefended":
        arguments = argparse.Namespace(**{**vars(arguments), "run_dir": arguments.undefended})
    model, x, y = trained.load(arguments)
    width = model.head.in_features // 8
    if case == "64":
        model = trained.widened(model, 64 // width)
    elif case != "undefended" and int(case) != width:
        model = narrow.load(arguments, int(case))
    return model.eval().requires_grad_(True), x, y


def _package(model, x, y, queries: int) -> torch.Tensor:
    """Which examples are robust according to the package."""
    logging.getLogger("auto-attack").setLevel(logging.CRITICAL)
    attack = AutoAttack(model, norm="Linf", eps=EPS, version="standard", device="cpu", seed=0)
    attack.square.n_queries = queries
    return attack.run_standard_evaluation(x, y)[1] == y


def our_call(precision: str) -> Callable[..., torch.Tensor]:
    """(model, x, y, queries) -> which examples are robust."""

    def call(model, x, y, queries: int) -> torch.Tensor:
        copied = attacks.for_attack(model, x[:8])
        found = attacks.autoattack(copied, x, y, eps=EPS, n_queries=queries, precision=precision)
        with torch.no_grad():
            return model(found).argmax(1) == y

    return call


# -- by steps -----------------------------------------------------------------
def _by_steps(arguments) -> list[dict[str, Any]]:
    """At width 64: CPU seconds of each attack's steps, weighted by their numbers."""
    small, x, _ = trained.load(arguments)
    model = trained.widened(small, 64 // (small.head.in_features // 8)).requires_grad_(True)
    x = x[:16]
    y = model(x).argmax(1)
    copied = attacks.for_attack(model)
    nets = {
        "package": model,
        "float32": Attacked(copied),
        "bf16": Attacked(copied, attacks.for_attack(model, dtype=torch.bfloat16)),
    }
    calls = {f"{name} {attack}": call for name, net in nets.items() for attack, call in _steps(net, x, y).items()}
    taken = timing.cpu_seconds(calls, repeats=arguments.slices)
    # Seconds of a whole AutoAttack on these examples.
    whole = {}
    for name in nets:
        parts = [[STEPS[attack] / COUNTED[attack] * value for value in taken[f"{name} {attack}"]] for attack in STEPS]
        whole[name] = [sum(each) for each in zip(*parts, strict=True)]
    facts = {
        "images": len(x), "how": "steps on examples that stay robust, weighted by their numbers in AutoAttack",
        "exact": "verdicts not counted", "seconds": whole, "steps": taken,
    }  # fmt: skip
    return [
        records.row(
            arguments.project, number, "width 64, by steps", timing.ratio(whole["package"], whole[name]), **facts
        )
        for number, name in ((9, "float32"), (10, "bf16"))
    ]


def _steps(net, x, y) -> dict[str, Callable]:
    """Some steps of each attack; the ball is so small that no example is misclassified."""
    ours = isinstance(net, Attacked)
    targeted, fab, square = (
        (ApgdTargeted, Fab, SquareSearch) if ours else (APGDAttack_targeted, FABAttack_PT, SquareAttack)
    )
    shared = {"norm": "Linf", "eps": 1e-6, "seed": 0, "device": x.device}
    one = {"n_restarts": 1, "n_target_classes": 1}
    search = square(net, n_queries=COUNTED["square"], resc_schedule=False, **shared)
    # So few queries get squares of the sizes that all 5,000 have.
    search.p_selection = lambda number: square.p_selection(search, number * STEPS["square"] // COUNTED["square"])
    return {
        "apgd": lambda: targeted(net, n_iter=COUNTED["apgd"] - 1, **one, **shared).perturb(x, y),
        "fab": lambda: fab(net, n_iter=COUNTED["fab"], targeted=True, **one, **shared).perturb(x, y),
        "square": lambda: search.perturb(x, y),
    }


if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
