"""A project with a scale so small that a training takes a second."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from moat.commands.cli import main
from moat.training.checkpoint import Checkpoints
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
TINY = {
    "title": "tiny",
    "description": "for tests",
    "comparable": False,
    "substitute": {"dataset": {"cifar10": "digits"}},
    "include": {"dataset": ["digits"], "arch": ["lenet5"]},
    "data": {"image_size": 16, "train_limit": 200, "test_limit": 40, "validation": 40},
    "recipe": {"epochs": 4, "batch_size": 16, "optimizer": {"lr": 0.02}},
    "max_seeds": 1,
    "evaluation": {"batch_size": 40, "limit": None},
    "resources": {name: {"mem_mb": 1000, "runtime": 5} for name in ("train", "evaluate", "verify")},
}


@dataclass
class Tiny:
    """The tiny project, its prepared digits, and the `moat train` command for it."""

    root: Path
    data: Path

    def arguments(self, out: Path, method: str = "pgd-at", seed: int = 0) -> list[str]:
        run = f"--dataset digits --arch lenet5 --method {method} --seed {seed} --scale tiny".split()
        return [
            "--project", str(self.root), "train", *run,
            "--data", str(self.data), "--out", str(out), "--work", f"{out}-work",
        ]  # fmt: skip

    @staticmethod
    def checkpoints(out: Path) -> Checkpoints:
        """The checkpoints of the only training that --out has seen."""
        (folder,) = (path for path in Path(f"{out}-work").iterdir() if path.is_dir())
        return Checkpoints(folder)

    def train(self, out: Path, **run) -> int:
        return main(self.arguments(out, **run))

    def start(self, out: Path, **run) -> subprocess.Popen:
        """The command as a process of its own, to be killed."""
        command = [sys.executable, "-m", "moat", *self.arguments(out, **run)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def change(self, **recipe) -> None:
        path = self.root / "config" / "scales" / "tiny.yaml"
        scale = yaml.safe_load(path.read_text())
        scale["recipe"].update(recipe)
        path.write_text(yaml.safe_dump(scale))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    copy_project(root)
    (root / "config" / "scales" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    project = ["--project", str(root)]
    assert main([*project, "fetch", "digits", "--into", str(root / "files")]) == 0
    data = root / "digits.safetensors"
    assert (
        main([*project, "prepare", "digits", "--from", str(root / "files"), "--scale", "tiny", "--out", str(data)]) == 0
    )
    return Tiny(root, data)


@pytest.fixture
def tiny(prepared, tmp_path) -> Tiny:
    """A project of the test's own, with the shared data."""
    root = tmp_path / "project"
    shutil.copytree(prepared.root, root)
    return Tiny(root, prepared.data)
