"""Train, attack and check full-width nets on a GPU that is at hand for minutes; goes on where it was stopped.

    MOAT_MIRROR=/path/to/mirror python benchmarks/gpu_run.py --minutes 10 --out gpu-run

In this order: the data; trainings of ResNet-18 on all images, each with as many epochs as its share of the time allows
by a rate measured first; PGD-10 with both gradients and the released metric on all test images, and undefended nets in
every attack space; DWF's experts, then DWF; AutoAttack on 1,000 images; the checks; the benchmark's rows about a GPU.
Every part gets a share of the time that is left, is stopped at its end with a checkpoint, and continues in the next
call. All of it through the `moat` commands, in this process.

--out gets records, histories, rows, checks and summary.json, no file above 16 MB; --work keeps weights and checkpoints.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

import train
from moat.base.errors import Interrupted, MoatError
from moat.base.files import read_json, write_json
from moat.base.signals import exit_on_sigterm
from moat.commands import cli
from moat.config.grid import Run, initial_runs
from moat.config.project import Project
from moat.planning.jobs import Workload

ROOT = Path(__file__).parents[1]
SCALE = "gpu-run"
METHODS = ("standard", "pgd-at", "trades", "advmoe", "dramoe")
# Standard training needs no attack, and so little time.
WEIGHTS = {"standard": 1.0}
# What is kept of the time for leaving in order.
RESERVE_SECONDS = 15.0
LARGEST_FILE = 16 * 10**6
MOST_EPOCHS = 30
# What was stopped in the first round goes on in the next, if there is time.
ROUNDS = 3
# Undefended nets are attacked in every space that a paper may have used, other nets with both gradients.
SUITES = {"standard": ("advmoe", "hybrid", "hybrid-normalised", "dwf", "dwf-normalised", "dwf-normalised-printed")}


class Clock:
    """The time that is left, and the share of it that the next part gets."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._now, self._end = now, now() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - self._now())

    def share(self, weights: Sequence[float]) -> float:
        """Seconds for the first of the parts that are still to come, by their weights."""
        return self.left * weights[0] / sum(weights)


@dataclass(frozen=True)
class Part:
    """A piece of the work: its share, whether it is finished, what it needs, and what does it in so many seconds."""

    name: str
    weight: float
    done: Callable[[], bool]
    work: Callable[[float], None]
    needs: tuple[Path, ...] = ()

    def ready(self) -> bool:
        return all(path.exists() for path in self.needs)


class Stopped(Exception):
    """Somebody else than the clock has stopped this process."""


@contextlib.contextmanager
def stopped_after(seconds: float, fired: threading.Event) -> Iterator[None]:
    """A context that sends this process SIGTERM after some time, which commands answer with a checkpoint."""

    def fire() -> None:
        fired.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(max(seconds, 0.0), fire)
    exit_on_sigterm("its time is over")
    try:
        timer.start()
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        timer.cancel()


class GpuRun:
    """The parts, in order, and where they leave what."""

    def __init__(self, arguments: argparse.Namespace, clock: Clock):
        self.arguments, self.clock = arguments, clock
        self.out, self.work = arguments.out, arguments.work
        self.project_folder = self.work / "project"
        self.data = self.work / f"{arguments.dataset}.safetensors"
        self.plan_file = self.work / "plan.json"
        self.epochs: dict[str, Any] = read_json(self.plan_file) if self.plan_file.exists() else {}
        self.log: list[dict[str, Any]] = []
        self._write_project()

    # -- configuration ---------------------------------------------------------
    def _write_project(self) -> None:
        """A copy of the configuration with a scale of its own."""
        for part in ("config", "workflow/schemas"):
            shutil.copytree(ROOT / part, self.project_folder / part, dirs_exist_ok=True)
        recipes: dict[str, Any] = {
            method: {
                "epochs": about["epochs"],
                "schedule": {"warmup": round(min(0.5, 1 / about["epochs"]), 4)},
                "deviations": {"budget": f"{about['epochs']} epochs, as the time allowed"},
            }
            for method, about in self.epochs.items()
        }
        for expert in ("benign", "fgsm", "pgd"):
            recipes[f"dwf-expert-{expert}"] = {"epochs": 1}
        for method in ("dwf", "dwf-expert-pgd"):
            recipes.setdefault(method, {})["pgd_attack"] = {"step_size": "4/255", "steps": [3, 4, 5]}
        recipes["dwf"]["epochs"] = 1
        resources = {"mem_mb": 8000, "runtime": 60}
        scale = {
            "title": SCALE,
            "description": "As much as a GPU can do in some minutes: full-width nets on all images, few epochs.",
            "comparable": False,
            "data": dict.fromkeys(("image_size", "train_limit", "test_limit", "validation")),
            "model": {"width": self.arguments.width},
            "recipe": {"epochs": 1, "deviations": {"budget": "as many epochs as the time allowed"}},
            "max_attack_steps": 5,
            "recipes": recipes,
            "max_seeds": 1,
            "evaluation": {"batch_size": self.arguments.batch_size, "limit": self.arguments.images},
            "attacks": {
                **{name: {"limit": self.arguments.attacked} for name in ("aa", "fgsm*", "pgd*_norm", "pgd*_printed")},
                **{name: {"limit": self.arguments.attacked} for name in ("pgd[2345]0", "pgd100_*")},
            },
            "checks": {"limit": min(300, self.arguments.attacked), "steps": 10, "queries": 1000},
            "resources": {"train": resources, "evaluate": resources, "verify": resources},
        }
        (self.project_folder / f"config/scales/{SCALE}.yaml").write_text(yaml.safe_dump(scale, sort_keys=False))
        suites = self.project_folder / "config/suites.yaml"
        own = {"title": "AutoAttack, with both gradients", "settings": ["clean", "aa", "aa_det"]}
        suites.write_text(yaml.safe_dump({**yaml.safe_load(suites.read_text()), SCALE: own}, sort_keys=False))
        self.project = Project(self.project_folder)

    # -- places ----------------------------------------------------------------
    def folder(self, run: Run) -> Path:
        return self.work / "runs" / run.arch / run.method / f"seed{run.seed}"

    def run_of(self, method: str, seed: int = 0) -> Run:
        return Run(self.arguments.dataset, self.arguments.arch, method, seed)

    # -- the work --------------------------------------------------------------
    def command(self, *words: object, seconds: float) -> int:
        """One `moat` command; 75 where its time was over.

        Raises:
            Stopped: the process was stopped by somebody else.
        """
        fired = threading.Event()
        try:
            with stopped_after(seconds, fired):
                code = cli.main(["--project", str(self.project_folder), *map(str, words)])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        if code == Interrupted.exit_code and not fired.is_set():
            raise Stopped
        self.log.append({"command": " ".join(["moat", *map(str, words)]), "exit_code": code})
        return code

    def prepare(self, seconds: float) -> None:
        files = self.work / "files" / self.arguments.dataset
        if self.command("fetch", self.arguments.dataset, "--into", files, seconds=seconds) == 0:
            scale = ("--scale", SCALE, "--out", self.data)
            self.command("prepare", self.arguments.dataset, "--from", files, *scale, seconds=seconds)

    def calibrate(self, method: str, seconds: float) -> None:
        """Choose the number of epochs by the rate of a few updates, once."""
        device = torch.device(self.device)
        options = SimpleNamespace(
            dataset=self.arguments.dataset, scale=SCALE, batch_size=None, repeats=3, warm_up=2, steps=2
        )
        (row,) = train.rows_of(options, self.project, device, self.arguments.arch, method, kinds=("train",))
        rate = row["images_per_second"]
        images = Workload(self.project, SCALE).images(self.arguments.dataset)["train"]
        epochs = max(1, min(MOST_EPOCHS, int(0.8 * seconds * rate / images)))
        self.epochs[method] = {"epochs": epochs, "images_per_second": rate}
        write_json(self.plan_file, self.epochs)
        self._write_project()

    def train(self, run: Run, seconds: float) -> None:
        if run.method in self.arguments.methods and run.method not in self.epochs:
            self.calibrate(run.method, seconds)
        starts = initial_runs(self.project, SCALE, run).items()
        named = [word for name, other in starts for word in ("--initialize-from", f"{name}={self.folder(other)}")]
        place = (
            "--data",
            self.data,
            "--out",
            self.folder(run),
            "--work",
            self.work / "checkpoints" / run.method / f"seed{run.seed}",
        )
        what = ("--dataset", run.dataset, "--arch", run.arch, "--method", run.method, "--seed", run.seed)
        # What the calibration took is not the training's.
        seconds = min(seconds, self.clock.left)
        self.command(
            "train", *what, "--scale", SCALE, *place, *named, "--device", self.arguments.device, seconds=seconds
        )

    def evaluate(self, run: Run, suite: str, seconds: float) -> None:
        rows = self.folder(run) / f"{suite}.parquet"
        about = ("--run", self.folder(run), "--data", self.data, "--suite", suite, "--scale", SCALE, "--out", rows)
        kept = ("--journal", self.folder(run) / f"{suite}.journal", "--device", self.arguments.device)
        self.command("evaluate", *about, *kept, seconds=seconds)

    def verify(self, run: Run, seconds: float) -> None:
        about = ("--run", self.folder(run), "--data", self.data, "--out", self.folder(run) / "checks.json")
        self.command("verify", *about, "--device", self.arguments.device, seconds=seconds)

    def benchmark(self, seconds: float) -> None:
        """The rows about a GPU, by the script that measures them."""
        target = self.out / "benchmark.json"
        words = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--rows", "14,15,16", "--archs", "resnet18"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run([*words, "--out", str(target)], timeout=seconds, check=False)
            self.log.append({"command": "benchmarks/gpu.py", "exit_code": done.returncode})

    @property
    def device(self) -> str:
        asked = self.arguments.device
        return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked

    # -- all of it --------------------------------------------------------------
    def parts(self) -> Iterator[Part]:
        yield Part("data", 4, self.data.exists, self.prepare)
        runs = [self.run_of(method) for method in self.arguments.methods]
        for run in runs:
            yield self._training(run, 4 * WEIGHTS.get(run.method, 3.0))
        for run in runs:
            for suite in SUITES.get(run.method, ("advmoe",)):
                yield self._evaluation(run, suite, 1.5)
        if self.arguments.dwf:
            mixture = self.run_of("dwf-unified")
            for expert in initial_runs(self.project, SCALE, mixture).values():
                yield self._training(expert, 1)
            yield self._training(mixture, 6)
            yield self._evaluation(mixture, "advmoe", 1.5)
        for run in sorted(runs, key=lambda run: run.method not in ("pgd-at", "dramoe")):
            yield self._evaluation(run, SCALE, 3)
        for run in runs:
            done, needs = (self.folder(run) / "checks.json").exists, (self.folder(run) / "run.json",)
            yield Part(f"verify {run.method}", 0.5, done, lambda seconds, run=run: self.verify(run, seconds), needs)
        if self.arguments.benchmark:
            yield Part("benchmark", 3, (self.out / "benchmark.json").exists, self.benchmark)

    def _training(self, run: Run, weight: float) -> Part:
        starts = initial_runs(self.project, SCALE, run).values()
        needs = (self.data, *(self.folder(other) / "run.json" for other in starts))
        name, done = f"train {run.method} seed {run.seed}", (self.folder(run) / "run.json").exists
        return Part(name, weight, done, lambda seconds: self.train(run, seconds), needs)

    def _evaluation(self, run: Run, suite: str, weight: float) -> Part:
        folder, name = self.folder(run), f"evaluate {run.method} {suite}"
        work, needs = lambda seconds: self.evaluate(run, suite, seconds), (folder / "run.json",)
        return Part(name, weight, (folder / f"{suite}.json").exists, work, needs)

    def go(self) -> int:
        """Work until everything is done or the time is over; 0 or 75."""
        for _ in range(ROUNDS):
            self._round([part for part in self.parts() if not part.done()])
        left = [part.name for part in self.parts() if not part.done()]
        self.keep(left)
        print(f"gpu_run: {len(left)} parts left" if left else "gpu_run: all done", file=sys.stderr)
        return Interrupted.exit_code if left else 0

    def _round(self, waiting: list[Part]) -> None:
        while waiting and self.clock.left > 0:
            seconds = self.clock.share([part.weight for part in waiting])
            part = waiting.pop(0)
            if not part.ready():
                continue
            print(f"gpu_run: {part.name}, {seconds:.0f} of {self.clock.left:.0f} s", file=sys.stderr, flush=True)
            try:
                part.work(seconds)
            except MoatError as error:
                print(f"gpu_run: {part.name}: {error}", file=sys.stderr, flush=True)
                self.log.append({"command": part.name, "exit_code": error.exit_code})
            self.keep()

    def keep(self, left: Sequence[str] = ()) -> None:
        """Copy the small files to --out, and say what ran."""
        self.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.work.glob("runs/*/*/seed*/*")):
            if path.suffix in (".json", ".csv", ".parquet") and path.stat().st_size < LARGEST_FILE:
                target = self.out / path.relative_to(self.work)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        shutil.copyfile(self.project_folder / f"config/scales/{SCALE}.yaml", self.out / f"{SCALE}.yaml")
        name = torch.cuda.get_device_name() if self.device.startswith("cuda") else "cpu"
        about = {"device": name, "torch": torch.__version__, "epochs": self.epochs, "commands": self.log}
        write_json(self.out / "summary.json", {**about, "left": list(left)})


def parser() -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(
        "benchmarks/gpu_run.py", description=__doc__, formatter_class=kind, allow_abbrev=False
    )
    found.add_argument("--minutes", type=float, default=10, metavar="N", help="of wall time (default: 10)")
    found.add_argument("--out", type=Path, required=True, metavar="DIR", help="records, histories, rows, checks")
    found.add_argument("--work", type=Path, default=Path("work/gpu-run"), metavar="DIR", help="default: %(default)s")
    found.add_argument("--dataset", default="cifar10-jpeg", help="default: %(default)s")
    found.add_argument("--arch", default="resnet18", help="default: %(default)s")
    found.add_argument("--width", type=float, default=1.0, help="default: 1")
    found.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS), metavar="A,B")
    found.add_argument("--images", type=int, metavar="N", help="test images (default: all)")
    found.add_argument("--attacked", type=int, default=1000, metavar="N", help="by AutoAttack (default: 1000)")
    found.add_argument("--batch-size", type=int, default=1000, metavar="N", help="of evaluations (default: 1000)")
    found.add_argument("--no-dwf", dest="dwf", action="store_false", help="leave DWF and its experts out")
    found.add_argument("--no-benchmark", dest="benchmark", action="store_false", help="leave the rows out")
    found.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    clock = Clock(max(0.0, 60 * arguments.minutes - RESERVE_SECONDS))
    before = signal.getsignal(signal.SIGTERM)
    try:
        return GpuRun(arguments, clock).go()
    except (MoatError, Stopped) as error:
        print(f"benchmarks/gpu_run.py: {error or 'stopped; the same command continues'}", file=sys.stderr)
        return error.exit_code if isinstance(error, MoatError) else Interrupted.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
