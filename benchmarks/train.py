"""Training speed: images/s and model-FLOP utilisation of each method and net; with --calibrate, plans use it.

    python benchmarks/train.py --methods standard,trades,dramoe --archs resnet18 --calibrate

Real updates of the real recipes, on random images that lie on the device. PGD-10 in float32, which is what evaluations
consist of, is measured, too. Utilisation counts the passes that the recipe asks for, whatever the code computes.
--calibrate writes config/calibration/<hardware>.json, where `moat plan` finds the rates.
"""

import argparse
import contextlib
import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from benchlib import command, methods, timing
from moat.attacks import pgd
from moat.base.errors import ConfigError
from moat.base.files import read_json, write_json
from moat.config.project import Project
from moat.config.recipes import resolve_recipe
from moat.machine import devices
from moat.methods.base import Step
from moat.planning.cost import ATTACK_STEP, training_passes
from moat.planning.macs import count
from moat.planning.rates import CALIBRATION, match
from moat.training.models import autocast

COLUMNS = ("kind", "method", "arch", "batch_size", "precision", "images_per_second", "tflops", "utilisation")
# Steps of the PGD by which evaluations are measured.
EVALUATION_STEPS = 10


def add_arguments(parser) -> None:
    parser.add_argument("--scale", default="paper", help="whose recipes and widths (default: paper)")
    parser.add_argument("--dataset", default="cifar10", help="whose image size and classes (default: cifar10)")
    parser.add_argument("--archs", default="resnet18", metavar="A,B", help="default: resnet18")
    parser.add_argument(
        "--methods", default="standard,pgd-at,trades,dramoe", metavar="A,B", help="default: %(default)s"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the recipe's")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help="rounds before that (default: 2)")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="updates in each round (default: 1)")
    parser.add_argument("--calibrate", action="store_true", help="write the rates where `moat plan` finds them")
    devices.add_arguments(parser)


def measure(arguments) -> list[dict[str, Any]]:
    """Rows of every method on every net, training and evaluation."""
    for name in ("repeats", "steps", "batch_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: allowed: 1 or more")
    project, device = Project(arguments.project), arguments.torch_device
    rows = []
    for arch in arguments.archs.split(","):
        for method in arguments.methods.split(","):
            rows += rows_of(arguments, project, device, arch, method)
    add_utilisation(rows, project, device)
    if arguments.calibrate:
        print(f"train: rates kept in {_calibrate(project, timing.machine(device), rows)}", file=sys.stderr)
    return rows


def rows_of(
    arguments: argparse.Namespace,
    project: Project,
    device: torch.device,
    arch: str,
    method: str,
    kinds: tuple[str, ...] = ("train", "evaluate"),
) -> list[dict[str, Any]]:
    """A row for each of ``kinds``, of one method on one net; ``arguments``: those of this benchmark."""
    resolved, net = methods.resolved_net(project, arguments.scale, arguments.dataset, arch, method)
    recipe = resolve_recipe(project, arguments.scale, method)
    size = arguments.batch_size or recipe["batch_size"]
    print(f"train: {arch}, {method}, batches of {size}", file=sys.stderr)
    begun = methods.begin(net, _steady(resolved["recipe"]), device)
    calls = _calls(begun, net, size, arguments.steps, device)
    calls = {kind: calls[kind] for kind in kinds}
    taken = timing.seconds(calls, repeats=arguments.repeats, warm_up=arguments.warm_up, device=device)
    about = {"method": method, "arch": arch, "model": net.model, "image_size": net.image_size, "batch_size": size}
    return [
        {"kind": kind, **about, **_speed(kind, net, recipe, resolved["recipe"], device, size * arguments.steps, values)}
        for kind, values in taken.items()
    ]


def _steady(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the mean number of steps, where each batch draws one of several."""
    attack = recipe.get("pgd_attack")
    if attack is None:
        return recipe
    return {**recipe, "pgd_attack": {**attack, "steps": [round(sum(attack["steps"]) / len(attack["steps"]))]}}


def _calls(method, net, size: int, steps: int, device: torch.device) -> dict[str, Any]:
    """A round of updates, and as many batches attacked as evaluations attack them."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (size, net.channels, net.image_size, net.image_size)
    x = torch.rand(shape, generator=generator, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(net.classes, (size,), generator=generator, device=device)
    batches = itertools.count()
    attack = {"eps": 8 / 255, "step_size": 2 / 255, "steps": EVALUATION_STEPS}

    def train() -> None:
        method.train_mode()
        for _ in range(steps):
            method.update(x, y, Step(0, 0, 1, next(batches), 1_000_000, device))

    def evaluate() -> None:
        method.model.eval()
        for _ in range(steps):
            pgd(method.model, x, y, generator=generator, **attack)

    return {"train": train, "evaluate": evaluate}


def _speed(kind, net, recipe, resolved, device, images: int, taken: list[float]) -> dict[str, Any]:
    mixed = kind == "train" and autocast(resolved, device) is not contextlib.nullcontext
    passes = training_passes(recipe) if kind == "train" else ATTACK_STEP * EVALUATION_STEPS
    found = timing.summary(taken)
    macs = count(net)
    rate = passes * macs * images / found["median"]
    return {
        "precision": "bf16" if mixed else "float32",
        "macs": macs,
        "passes": passes,
        "seconds": found,
        "images_per_second": round(images / found["median"], 2),
        "macs_per_second": rate,
        "tflops": round(2 * rate / 1e12, 4),
    }


def add_utilisation(rows, project: Project, device: torch.device) -> None:
    """Add the fraction of the data sheet's peak, where it is known, and of a large matrix product's rate here."""
    known = project.planner()["hardware"]
    try:
        peak = known[match(timing.machine(device)["device"], known)]["peak"]
    except ConfigError:
        peak = {}
    types = {"bf16": torch.bfloat16, "float32": torch.float32}
    product = {name: timing.matmul_rate(device, types[name]) for name in {row["precision"] for row in rows}}
    for row in rows:
        flops = 2 * row["macs_per_second"]
        at_best = peak.get(row["precision"])
        row["utilisation"] = round(flops / (at_best * 1e12), 4) if at_best else None
        row["of_matrix_product"] = round(flops / product[row["precision"]], 4)


def _calibrate(project: Project, machine: dict[str, Any], rows) -> Path:
    """Add the rates to those measured before on this hardware, replacing the same method on the same net."""
    path = project.root / CALIBRATION / f"{match(machine['device'], project.planner()['hardware'])}.json"
    keys = ("kind", "precision", "method", "arch", "model", "image_size")
    kept = {tuple(row[key] for key in keys): row for row in (read_json(path)["rows"] if path.exists() else [])}
    kept |= {tuple(row[key] for key in keys): row for row in rows}
    write_json(path, {**machine, "rows": list(kept.values())})
    return path


if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
