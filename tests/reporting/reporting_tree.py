"""A project and a tree of results, written in the formats that the commands leave: small, but real files."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy

from project_copy import copy_project, edit_yaml

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 10
SUITES = {
    "dramoe": ["clean", "fgsm", "bim", "pgd10", "pgd20", "pgd50", "cw_inf"],
    "advmoe": ["clean", "pgd10", "pgd10_det", "pgd10_advmoe"],
    "epsilon": [
        "clean",
        "pgd10_e1",
        "pgd10_e2",
        "pgd10_e4",
        "pgd10_e8",
        "pgd10_e12",
        "pgd10_e16",
        "pgd10_e32",
        "pgd10_e64",
    ],
}
CHECKS = ["threat-model", "monotone-epsilon"]


def make_project(folder: Path) -> Path:
    """A copy of the project's own configuration with two small studies, to be changed at will."""
    copy_project(folder)
    shutil.rmtree(folder / "config" / "studies")
    shutil.copytree(Path(__file__).parent / "studies", folder / "config" / "studies")
    shutil.copy(Path(__file__).parent / "claims.yaml", folder / "config" / "claims.yaml")
    edit_yaml(folder / "config/config.yaml", lambda content: content.update(studies=["unified", "dramoe"]))
    few = {"dataset": ["digits"], "arch": ["resnet18"], "method": ["standard", "pgd-at", "trades"]}
    edit_yaml(folder / "config/scales/smoke.yaml", lambda content: content.update(include=few, exclude={}))
    return folder


def rows(suite: str, rates: dict[str, float], n: int, seed: int) -> pd.DataFrame:
    """Rows of an evaluation whose accuracy under a setting is about its rate (0.5 where none is given)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, n)
    parts = []
    for setting in SUITES[suite]:
        correct = random.random(n) < rates.get(setting, 0.5)
        predicted = np.where(correct, labels, (labels + 1) % CLASSES)
        parts.append(
            pd.DataFrame(
                {
                    "setting": setting,
                    "index": np.arange(n, dtype=np.int64),
                    "label": labels.astype(np.int64),
                    "predicted": predicted.astype(np.int64),
                    "correct": correct,
                    "confidence": random.random(n).astype(np.float32),
                    "linf": np.float32(0.0 if setting == "clean" else 8 / 255),
                    "steps": np.int64(10),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


class Tree:
    """Writes runs, evaluations and checks below ``folder/results/<scale>``."""

    def __init__(self, folder: Path, scale: str = "smoke", sources: dict[str, str] | None = None):
        self.root, self.base = folder / "results", folder / "results" / scale
        self.root.mkdir(exist_ok=True)
        self.scale = scale
        self.sources = sources or {}

    def path(self, kind: str, name: str) -> Path:
        return self.base / kind / name

    def run(self, dataset="digits", arch="resnet18", method="pgd-at", seed=0, epochs=3) -> str:
        name = f"{dataset}/{arch}/{method}/seed{seed}"
        history = pd.DataFrame(
            {
                "epoch": np.arange(1, epochs + 1),
                "lr": np.linspace(0.1, 0, epochs),
                "loss": np.linspace(2, 1, epochs) + seed,
                "validation_accuracy": np.linspace(0.2, 0.8, epochs) - 0.1 * seed,
                "images": 1000,
                "seconds": 1.5,
            }
        )
        folder = self.path("runs", name)
        folder.mkdir(parents=True)
        history.to_csv(folder / "history.csv", index=False)
        content = {
            **self.identity(dataset, arch, method, seed),
            "recipe": {"version": 1, "epochs": epochs, "batch_size": 64},
            "num_classes": CLASSES,
            "deviations": {"precision": "in bfloat16 & float32", "budget": f"that of {method}"},
            "data": {"path": f"results/{self.scale}/data/{dataset}.safetensors", "sha256": "d" * 64},
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "sources": self.sources,
            "lock_sha256": None,
            "versions": {"python": "3.11.2", "torch": "2.13.0", "moat": "0.1.0"},
            "hardware": {"cpu": "A <fast> CPU & more", "cores": 2, "memory_gb": 8.0, "system": "Linux x86_64"},
            "wall_seconds": 61.5,
            "gpu_seconds": 0.0,
            "images_per_second": 1234.5,
            "peak_memory_bytes": 512 * 2**20,
            "model_sha256": self.sha(name),
            "last_sha256": self.sha(f"{name}-last"),
            "parameters": 176000,
            "macs_per_image": 2_300_000,
        }
        for weights in ("model.safetensors", "last.safetensors"):
            (folder / weights).write_bytes(b"\2\0\0\0\0\0\0\0{}")
        (folder / "run.json").write_text(json.dumps(content) + "\n")
        return name

    def sha(self, name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

    def measured(self, name: str) -> dict:
        """Of a run, or of the weights of its last epoch: ``…/seed0-last``."""
        dataset, arch, method, seed = name.split("/")
        return self.identity(dataset, arch, method, int(seed.removesuffix("-last").removeprefix("seed")))

    def identity(self, dataset, arch, method, seed) -> dict:
        return {"dataset": dataset, "arch": arch, "method": method, "seed": seed, "scale": self.scale}

    def evaluation(self, name: str, suite: str, frame: pd.DataFrame, sha: str | None = None) -> Path:
        path = self.path("evaluations", f"{name}/{suite}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path, compression="zstd", index=False)
        content = {
            "suite": suite,
            "settings": {setting: {} for setting in SUITES[suite]},
            "run": {**self.measured(name), "model_sha256": sha or self.sha(name)},
            "n": int(frame["index"].nunique()),
            "seconds": 12.25,
            "hardware": {"cpu": "a CPU", "cores": 2},
            "versions": {"torch": "2.13.0"},
            "sources": self.sources,
        }
        path.with_suffix(".json").write_text(json.dumps(content) + "\n")
        return path

    def checks(self, name: str, failed: tuple[str, ...] = ()) -> Path:
        path = self.path("checks", f"{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        checks = [
            {
                "check": check,
                "passed": check not in failed,
                "value": 0.25,
                "limit": 0.01,
                "message": f"{check} < limit & such",
            }
            for check in CHECKS
        ]
        content = {
            "passed": not failed,
            "failed": list(failed),
            "worst_case_accuracy": 0.41,
            "checks": checks,
            "run": {**self.measured(name), "model_sha256": self.sha(name)},
            "sources": self.sources,
        }
        path.write_text(json.dumps(content) + "\n")
        return path

    def probe(self, name: str, probe: str, arrays: dict[str, np.ndarray], sha: str | None = None) -> Path:
        path = self.path("probes", f"{name}/{probe}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(arrays, path)
        record = {"run": {"model_sha256": sha or self.sha(name)}, "classes": [f"class {n}" for n in range(CLASSES)]}
        path.with_suffix(".json").write_text(json.dumps(record) + "\n")
        return path

    def everything(
        self, methods=("standard", "pgd-at", "trades"), seeds=(0,), n=400, failed=None, dataset="digits"
    ) -> None:
        """Run, evaluations and checks of several methods; ``failed``: method -> names of checks."""
        strength = {"standard": 0.0, "pgd-at": 0.45, "trades": 0.5}
        for number, method in enumerate(methods):
            for seed in seeds:
                name = self.run(method=method, seed=seed, dataset=dataset)
                self.checks(name, (failed or {}).get(method, ()))
                robust = strength[method]
                rates = dict.fromkeys(SUITES["dramoe"], robust) | {"clean": 0.95 - 0.05 * number}
                self.evaluation(name, "dramoe", rows("dramoe", rates, n, seed=10 * number + seed))
                sweep = dict(zip(SUITES["epsilon"], np.linspace(0.9, 0.05, 9) * (1 if robust else 0.3), strict=True))
                self.evaluation(name, "epsilon", rows("epsilon", sweep, n, seed=100 + 10 * number + seed))


def make_stale(record: Path) -> None:
    """As if the sources that made a result had changed since."""
    record.write_text(json.dumps({**json.loads(record.read_text()), "sources": {"nets": "1" * 16}}) + "\n")


def build(folder: Path) -> Tree:
    """Tables, figures and the page, with awkward characters, a failed check and a method that did not run."""
    from moat.commands.cli import main

    tree = Tree(make_project(folder), sources={"nets": "1" * 16})

    def awkward(content):
        table = content["tables"]["leaderboard"]
        table["title"] = "100 % of a_b & <c> | d # $e ~ ^ {f} \\g"
        table["columns"][0]["points"][1]["label"] = "FG_SM & 50 % <b>"

    edit_yaml(folder / "config/studies/unified.yaml", awkward)
    tree.everything(methods=["standard", "pgd-at"], failed={"pgd-at": ("monotone-epsilon",)})
    for command in (["tabulate"], ["tabulate", "--cells"], ["draw"], ["report"]):
        place = ["--scale", tree.scale, "--results", str(tree.root)]
        assert main(["--project", str(folder), *command, *place]) == 0
    return tree


def cells(tree: Tree, name: str) -> pd.DataFrame:
    return pd.read_csv(tree.base / "tables" / f"{name}.csv", keep_default_na=False, na_values={"measured": [""]})


def expected_text(row: dict) -> str:
    """A cell's text, from its row in the CSV."""
    if row["verdict"] == "not-run":
        return "not run"
    number = f"{row['measured']:.1f} [{float(row['ci_low']):.1f}, {float(row['ci_high']):.1f}]"
    return f"unverified: {number}" if row["verdict"] == "unverified" else number
