"""Rows 14 to 18 of the table, about a GPU: utilisation, routing, CUDA graphs, hours of the DWF recipe, memory.

    python benchmarks/gpu.py [--rows 14,15,16,17,18] --record

Real updates of the real recipes on random images that lie on the device, as in train.py.
"""

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.backends import cudnn

import train
from benchlib import command, methods, records, timing, updates
from benchlib.masked import MaskedTrainer, balance, loads
from moat.attacks import pgd
from moat.config.project import Project
from moat.kernels import graphs
from moat.machine import devices
from moat.planning.jobs import Workload
from moat.training.models import autocast

COLUMNS = ("id", "case", "ratio", "unit", "low", "high", "n", "floor", "aim")
# Arch -> the case of row 14.
NAMES = {"resnet18": "ResNet-18", "wrn-28-10": "WRN-28-10"}


def add_arguments(parser) -> None:
    parser.add_argument("--rows", default="14,15,16,17,18", metavar="N,N", help="of the table (default: %(default)s)")
    parser.add_argument("--scale", default="paper", help="whose recipes and widths (default: paper)")
    parser.add_argument("--dataset", default="cifar10", help="whose images (default: cifar10)")
    parser.add_argument("--archs", default=",".join(NAMES), metavar="A,B", help="of row 14 (default: %(default)s)")
    parser.add_argument("--large", default="wrn-28-10", metavar="ARCH", help="of row 18 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=512, metavar="N", help="of rows 14 and 15 (default: 512)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")
    devices.add_arguments(parser)


def measure(arguments) -> list[dict[str, Any]]:
    """The rows; those that this device cannot measure say why."""
    project, rows = Project(arguments.project), []
    for number in map(int, arguments.rows.split(",")):
        print(f"gpu: row {number}", file=sys.stderr)
        rows += ROWS[number](arguments, project, arguments.torch_device)
    return rows


def _speed(arguments, project: Project, device, arch: str, method: str, batch_size: int | None) -> dict[str, Any]:
    """The row of a training in train.py."""
    of_train = {"dataset": arguments.dataset, "scale": arguments.scale, "batch_size": batch_size}
    options = argparse.Namespace(**of_train, repeats=arguments.repeats, warm_up=2, steps=1)
    (row,) = train.rows_of(options, project, device, arch, method, kinds=("train",))
    return row


def _utilisation(arguments, project: Project, device) -> list[dict[str, Any]]:
    """Row 14: percent of the data sheet's peak, of TRADES in the recipe's precision."""
    rows = []
    for arch in arguments.archs.split(","):
        row = _speed(arguments, project, device, arch, "trades", arguments.batch_size)
        train.add_utilisation([row], project, device)
        facts = {key: row[key] for key in ("precision", "batch_size", "images_per_second", "of_matrix_product")}
        measured: dict[str, Any] = {}
        if row["utilisation"] is None:
            facts["not_measured"] = "the peak of this device is not in config/planner.yaml"
        else:
            measured, facts["unit"] = _scaled(row["seconds"], 100 * row["utilisation"]), "%"
        rows.append(records.row(project.root, 14, NAMES.get(arch, arch), measured, **facts))
    return rows


def _scaled(seconds: dict[str, float], at_median: float) -> dict[str, float]:
    """A rate's median and range, given the rate at the median number of seconds."""
    whole = at_median * seconds["median"]
    low, high = whole / seconds["high"], whole / seconds["low"]
    return {"ratio": round(at_median, 3), "low": round(low, 3), "high": round(high, 3), "n": seconds["n"]}


def _routing(arguments, project: Project, device) -> list[dict[str, Any]]:
    """Row 15: ADVMoE's attack in the recipe's precision, divided by its steps, against the definition's."""
    resolved, net = methods.resolved_net(project, arguments.scale, arguments.dataset, "resnet18", "advmoe")
    generator, size = torch.Generator(device).manual_seed(0), arguments.batch_size
    x = torch.rand(size, net.channels, net.image_size, net.image_size, generator=generator, device=device)
    y = torch.arange(size, device=device) % net.classes
    method = methods.begin(net, resolved["recipe"], device)
    balance(method.model, x)
    attack = updates.attack_of(resolved["recipe"])
    theirs, last = MaskedTrainer(method.model, resolved["recipe"], attack), updates.channels_last(x)
    calls = {
        "routed": lambda: method.adversarial(last, y, generator),
        "masked": _at_defaults(lambda: theirs.adversarial(x, x + 0.001 * torch.randn_like(x))),
    }
    taken = timing.seconds(calls, repeats=arguments.repeats, warm_up=2, device=device)
    about = {"batch_size": size, "load": loads(method.model.eval(), x), "steps": attack["steps"]}
    about["ms_per_image_and_step"] = updates.milliseconds(taken, size * attack["steps"])
    mixed = autocast(resolved["recipe"], device) is not contextlib.nullcontext
    about["precision"] = f"{'bf16, router in float32' if mixed else 'float32'}; the definition's: TF32"
    return [records.row(project.root, 15, "", timing.ratio(taken["masked"], taken["routed"]), **about)]


def _at_defaults(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with PyTorch's defaults for cuDNN: TF32, not deterministic."""

    def called() -> Any:
        with cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
            return call()

    return called


def _graphs(arguments, project: Project, device) -> list[dict[str, Any]]:
    """Row 16: the attack of PGD-AT on batches of the recipe, its gradients replayed, against launch by launch."""
    if device.type != "cuda":
        return [records.row(project.root, 16, "", {}, not_measured="CUDA graphs need a CUDA device")]
    resolved, net = methods.resolved_net(project, arguments.scale, arguments.dataset, "resnet18", "pgd-at")
    generator, size = torch.Generator(device).manual_seed(0), resolved["recipe"]["batch_size"]
    x = torch.rand(size, net.channels, net.image_size, net.image_size, generator=generator, device=device)
    x, y = updates.channels_last(x), torch.arange(size, device=device) % net.classes
    copies, attack = {}, updates.attack_of(resolved["recipe"])
    for name, asked in (("eager", "0"), ("graphed", "1")):
        method = methods.begin(net, resolved["recipe"], device)
        with _environment(graphs.VARIABLE, asked):
            copies[name] = method.attacked()

    def attacked(copied) -> Callable[[], Any]:
        def call() -> Any:
            with method.autocast():
                return pgd(copied, x, y, generator=generator, **attack)

        return call

    # Captured in the first rounds.
    warm_up = 2 + graphs.CAPTURE_AFTER // attack["steps"]
    calls = {name: attacked(copied) for name, copied in copies.items()}
    taken = timing.seconds(calls, repeats=arguments.repeats, warm_up=warm_up, device=device)
    about = {"batch_size": size, "steps": attack["steps"]}
    about["ms_per_image_and_step"] = updates.milliseconds(taken, size * attack["steps"])
    if not copies["graphed"].forward.kept:
        about["not_measured"] = "no graph was kept: not captured, not equal, or no faster; the log says which"
        return [records.row(project.root, 16, "", {}, **about)]
    return [records.row(project.root, 16, "", timing.ratio(taken["eager"], taken["graphed"]), **about)]


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _recipe_hours(arguments, project: Project, device) -> list[dict[str, Any]]:
    """Row 17: hours of DWF and the experts that it starts from, one seed, from the speed of an update of each."""
    work = Workload(project, arguments.scale)
    images = work.images(arguments.dataset)["train"]
    needed = [run["method"] for run in work.recipe("dwf")["initialize_from"]]
    hours, low, high, parts = 0.0, 0.0, 0.0, {}
    for method in ("dwf", *sorted(set(needed))):
        row = _speed(arguments, project, device, "resnet18", method, None)
        epochs = work.recipe(method)["epochs"]
        times = max(1, needed.count(method))
        # Updates, divided by the seconds of an hour.
        updates_made = times * epochs * images / row["batch_size"] / 3600
        parts[method] = {"times": times, "epochs": epochs, "images_per_second": row["images_per_second"]}
        parts[method]["precision"] = row["precision"]
        hours += updates_made * row["seconds"]["median"]
        low, high = low + updates_made * row["seconds"]["low"], high + updates_made * row["seconds"]["high"]
    found = {"ratio": round(hours, 3), "low": round(low, 3), "high": round(high, 3), "n": arguments.repeats}
    how = "from the time of an update of each training; validation, data and start-up not counted"
    return [records.row(project.root, 17, "", found, unit="h", how=how, images=images, parts=parts)]


def _memory(arguments, project: Project, device) -> list[dict[str, Any]]:
    """Row 18: peak memory of the tensors of an update of PGD-AT, in GB (10^9 bytes)."""
    if device.type != "cuda":
        return [records.row(project.root, 18, "", {}, not_measured="memory is counted on a CUDA device only")]
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    row = _speed(arguments, project, device, arguments.large, "pgd-at", None)
    gigabytes = (torch.cuda.max_memory_allocated(device) - before) / 1e9
    found = {key: round(gigabytes, 3) for key in ("ratio", "low", "high")} | {"n": 1}
    facts = {"batch_size": row["batch_size"], "precision": row["precision"]}
    return [records.row(project.root, 18, "", found, unit="GB", **facts)]


ROWS = {14: _utilisation, 15: _routing, 16: _graphs, 17: _recipe_hours, 18: _memory}

if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
