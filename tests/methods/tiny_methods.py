"""Every registered method at a size at which a training takes a second: 64 digits of 8x8 pixels, a net of 4 to 32
channels, short attacks. The runs that a method starts from are trained first, at the same size."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import moat.methods
from moat.commands.cli import main
from moat.config.grid import Run as GridRun
from moat.config.grid import initial_runs
from moat.config.project import Project
from moat.config.recipes import resolve_run
from moat.data import datasets
from moat.methods.base import Method, Step
from moat.training import runs
from moat.training.models import model_options
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
ARCH = "resnet18"
# Three experts for DWF, as at scale smoke.
FEWER = yaml.safe_load((ROOT / "config/scales/smoke.yaml").read_text())["recipes"]
TINY = {
    "title": "tiny",
    "description": "for tests",
    "comparable": False,
    "data": {"image_size": 8, "train_limit": 64, "test_limit": 20, "validation": 20},
    "model": {"width": 1 / 16},
    "recipe": {"epochs": 2, "batch_size": 16},
    "recipes": FEWER,
    "max_seeds": 1,
    "evaluation": {"batch_size": 20, "limit": None},
    "resources": {name: {"mem_mb": 1000, "runtime": 5} for name in ("train", "evaluate", "verify")},
}

# What a variant with another budget, or in another space (test_training_spaces.py), changes of what it extends.
BUDGET = (
    *("title", "role", "epochs", "optimizer", "mask_epochs_fraction", "validation", "initialize_from", "cost"),
    "attack_space",
)


def distinct_recipes() -> list[str]:
    """The recipes that differ in more than budget, epsilon and space from what they extend."""
    project = Project(ROOT)

    def rest(name: str) -> dict[str, Any]:
        content = {key: value for key, value in project.method(name).items() if key not in BUDGET}
        attacks = {key: dict(content[key]) for key in ("attack", "alpha_attack") if key in content}
        for attack in attacks.values():
            attack.pop("eps")
            attack.pop("step_size")
        return {**content, **attacks, "sources": None, "deviations": None}

    extended = {name: [*project.recipe_files(name), "_"][1] for name in project.names("methods")}
    return [name for name, other in extended.items() if other.startswith("_") or rest(name) != rest(other)]


@dataclass
class Tiny:
    """The tiny project: its prepared digits, and the runs that have been trained in it."""

    root: Path
    data: Path
    finished: dict[tuple[str, int], Path] = field(default_factory=dict)

    def resolved(self, method: str, seed: int = 0) -> dict[str, Any]:
        project = Project(self.root)
        resolved = resolve_run(project, "tiny", dataset="digits", arch=ARCH, method=method, seed=seed)
        return {
            **resolved,
            "recipe": _shorter(resolved["recipe"]),
            "validation_attack": _shorter(resolved["validation_attack"]),
        }

    def initialize_from(self, method: str, seed: int = 0) -> dict[str, Path]:
        """The folders of the runs that a method starts from, trained where they are not yet."""
        starts = initial_runs(Project(self.root), "tiny", GridRun("digits", ARCH, method, seed))
        return {name: self.run(run.method, run.seed) for name, run in starts.items()}

    def train(self, method: str, out: Path, seed: int = 0) -> Path:
        run = runs.Run(
            resolved=self.resolved(method, seed),
            data=self.data,
            out=out,
            work=Path(f"{out}-work"),
            initialize_from=self.initialize_from(method, seed),
            root=self.root,
        )
        run.train()
        return out

    def run(self, method: str, seed: int = 0) -> Path:
        """The folder of a finished run, shared by all tests."""
        if (method, seed) not in self.finished:
            out = self.train(method, self.root / "runs" / method / f"seed{seed}", seed)
            self.finished[method, seed] = out
        return self.finished[method, seed]

    def method(self, name: str) -> Method:
        """A method as a training begins it."""
        resolved = self.resolved(name)
        cls = moat.methods.get(resolved["class"])
        starts, data = self.initialize_from(name), datasets.load(self.data)
        torch.manual_seed(0)
        options = model_options(resolved["model"], data)
        method = cls(cls.build(arch=ARCH, num_classes=10, options=options), resolved["recipe"], autocast=None)
        method.initialize(starts)
        return method

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """16 training images (16, C, 8, 8) in [0, 1] and their labels."""
        split = datasets.load(self.data).splits["train"]
        return split.images[:16].permute(0, 3, 1, 2).float().div(255), split.labels[:16]


def prepared(root: Path) -> Tiny:
    """The tiny project in an empty folder, its digits fetched and prepared."""
    copy_project(root)
    (root / "config" / "scales" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    project, data = ["--project", str(root)], root / "digits.safetensors"
    assert main([*project, "fetch", "digits", "--into", str(root / "files")]) == 0
    prepare = ["prepare", "digits", "--from", str(root / "files"), "--scale", "tiny", "--out", str(data)]
    assert main([*project, *prepare]) == 0
    return Tiny(root, data)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return prepared(tmp_path_factory.mktemp("tiny"))


def begin(method: Method, epoch: int) -> None:
    """Put a method where the engine has it when the batches of an epoch begin."""
    method.train_mode()
    method.begin_epoch(epoch)


def step_of(epoch: int, batch: int, batches: int = 60) -> Step:
    return Step(0, epoch, TINY["recipe"]["epochs"], batch, batches, torch.device("cpu"))


def set_rates(method: Method, step: Step, factor: float = 1.0) -> None:
    for name, optimizer in method.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = factor * method.learning_rate(name, step)


def _shorter(content: Any) -> Any:
    """The same with at most two steps in every attack."""
    if isinstance(content, dict):
        return {key: _at_most_two(value) if key == "steps" else _shorter(value) for key, value in content.items()}
    return content


def _at_most_two(steps: int | list[int]) -> int | list[int]:
    return [min(each, 2) for each in steps] if isinstance(steps, list) else min(steps, 2)
