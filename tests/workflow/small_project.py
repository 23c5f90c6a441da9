"""A small project of its own, in a folder of its own: what the tests of the workflow and of SLURM run."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from project_copy import copy_project

ROOT = Path(__file__).parents[2]

SCALE = {
    "title": "tiny",
    "description": "for tests",
    "comparable": False,
    "substitute": {"dataset": {"cifar10": "digits"}},
    "include": {"dataset": ["digits"]},
    "data": {"image_size": 16, "train_limit": 100, "test_limit": 30, "validation": 20},
    "recipe": {"epochs": 1, "batch_size": 32, "validation": {"setting": "clean"}},
    "max_seeds": 1,
    "evaluation": {"batch_size": 30, "limit": None},
    "checks": {"limit": 16, "steps": 2, "queries": 10},
    "resources": {name: {"mem_mb": 1000, "runtime": 5} for name in ("train", "evaluate", "verify")},
}


def study(*methods: str) -> dict[str, Any]:
    """A table and a figure of LeNet-5 with these methods, clean and under FGSM."""

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

    def environment(self) -> dict[str, str]:
        also = os.environ.get("PYTHONPATH")
        path = str(self.root / "src") + (f"{os.pathsep}{also}" if also else "")
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("MOAT_MIRROR", None)
        return environment

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=1800,
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


def make(root: Path, *, scale: Mapping[str, Any] = SCALE, studies: Mapping[str, Any]) -> Workflow:
    """A copy of this project whose only studies are these, at the scale ``tiny``."""
    root.mkdir(parents=True)
    for name in ("workflow", "src", "envs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    copy_project(root)
    shutil.copy(ROOT / "Snakefile", root)
    (root / "profiles").symlink_to("workflow/profiles")
    (root / "config/scales/tiny.yaml").write_text(yaml.safe_dump(dict(scale)))
    shutil.rmtree(root / "config/studies")
    (root / "config/studies").mkdir()
    for name, content in studies.items():
        (root / f"config/studies/{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    workflow = Workflow(root)
    config = (root / "config/config.yaml").read_text()
    config = re.sub(r"^scale: .*$", "scale: tiny", config, count=1, flags=re.MULTILINE)
    config = re.sub(r"^studies: .*$", f"studies: [{', '.join(studies)}]", config, count=1, flags=re.MULTILINE)
    (root / "config/config.yaml").write_text(config)
    return workflow
