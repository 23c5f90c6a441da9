"""A small project of its own, run once from nothing to its report by the real Snakemake."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLEAN = ("Nothing to be done",)

SCALE = {
    "title": "tiny",
    "description": "for tests",
    "comparable": False,
    "substitute": {"dataset": {"cifar10": "digits"}},
    "only": {"dataset": ["digits"]},
    "data": {"image_size": 16, "train_limit": 100, "test_limit": 30, "validation": 20},
    "recipe": {"epochs": 1, "batch_size": 32, "validation": {"setting": "clean"}},
    "max_seeds": 1,
    "evaluation": {"batch_size": 30, "limit": None},
    "resources": {name: {"mem_mb": 1000, "runtime": 5} for name in ("train", "evaluate", "verify")},
}


def _study(*methods: str) -> dict:
    def axis(name, *points):
        return {"axis": name, "points": list(points)}

    rows = [
        axis("dataset", {"label": "CIFAR-10", "dataset": "cifar10"}),
        axis("arch", {"label": "LeNet-5", "arch": "lenet5"}),
        axis("method", *({"label": method, "method": method} for method in methods)),
    ]
    attack = axis("attack", {"label": "clean", "settings": ["clean"]}, {"label": "FGSM", "settings": ["fgsm"]})
    figure = {
        "kind": "accuracy_vs_epsilon",
        "title": "t",
        "caption": "c",
        "suite": "quick",
        "settings": ["clean", "fgsm"],
        "lines": rows,
    }
    table = {"title": "t", "caption": "c", "suite": "quick", "rows": rows, "columns": [attack]}
    return {
        "title": "t",
        "description": "d",
        "tolerance": 2.0,
        "seeds": [0],
        "tables": {"table": table},
        "figures": {"figure": figure},
    }


@dataclass
class Workflow:
    """A project's folder and the commands in it; the package is the folder's own copy."""

    root: Path

    def run(self, *command: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("MOAT_MIRROR", None)
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def snakemake(self, *options: str) -> subprocess.CompletedProcess:
        return self.run("snakemake", "--cores", "2", *options)

    def planned(self, *options: str) -> dict[str, int]:
        """What a dry run would do: rule -> number of jobs."""
        done = self.snakemake("--dry-run", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        text = done.stdout + done.stderr
        stats = text.partition("Job stats:")[2].partition("total")[0]
        jobs = Counter({name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)", stats, re.MULTILINE)})
        jobs.pop("all", None)
        return dict(jobs)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert old in text, f"{old!r} is not in {file}"
        path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workflow:
    """The small project, run to its report."""
    root = tmp_path_factory.mktemp("workflow") / "project"
    root.mkdir()
    for name in ("workflow", "config", "src"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", root)
    (root / "profiles").symlink_to("workflow/profiles")
    (root / "config/scales/tiny.yaml").write_text(yaml.safe_dump(SCALE))
    shutil.rmtree(root / "config/studies")
    (root / "config/studies").mkdir()
    (root / "config/studies/first.yaml").write_text(yaml.safe_dump(_study("standard", "pgd-at"), sort_keys=False))
    (root / "config/studies/second.yaml").write_text(yaml.safe_dump(_study("pgd-at", "trades"), sort_keys=False))
    workflow = Workflow(root)
    workflow.edit("config/config.yaml", "scale: quickstart", "scale: tiny")
    workflow.edit("config/config.yaml", "studies: [unified, dramoe, dwf, mocse, hybrid]", "studies: [first, second]")
    done = workflow.snakemake("--resources", "gpu=2")
    logs = "\n".join(f"== {path}\n{path.read_text()[-2000:]}" for path in (root / "logs").rglob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    (root / "snakemake.log").write_text(done.stdout + done.stderr)
    return workflow


@pytest.fixture
def workflow(finished, tmp_path) -> Workflow:
    """A copy of the finished project, times and Snakemake's records included, to be changed."""
    shutil.copytree(finished.root, tmp_path / "project", symlinks=True)
    return Workflow(tmp_path / "project")
