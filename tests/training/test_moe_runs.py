"""MoE-CNN runs from command to files: resumed to the bit, loaded again, evaluated."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from moat.base.errors import Interrupted
from moat.base.files import hash_file
from moat.commands.cli import main
from moat.config.project import Project
from moat.config.recipes import deviations
from moat.models.moe import MoeCnn
from moat.training import engine
from moat.training.models import load_model
from moat.training.run_record import read_run

METHODS = ("pgd-at-moe", "advmoe", "dramoe")
CHANGES = {
    "include": {"dataset": ["digits"], "arch": ["resnet18"]},
    "model": {"width": 0.0625},
    "recipe": {"epochs": 2, "batch_size": 40, "optimizer": {"lr": 0.02}, "validation": {"every": 2}},
    "recipes": {name: {"attack": {"steps": 1}} for name in METHODS},
}


@dataclass
class MoeProject:
    """A project whose tiny scale has a ResNet-18 of 4 to 16 channels, and the `moat train` command for it."""

    root: Path
    data: Path

    def train(self, out: Path, method: str) -> int:
        run = f"--dataset digits --arch resnet18 --method {method} --seed 0 --scale tiny".split()
        files = ["--data", str(self.data), "--out", str(out), "--work", f"{out}-work"]
        return main(["--project", str(self.root), "train", *run, *files])


@pytest.fixture(scope="module")
def moe(prepared, tmp_path_factory) -> MoeProject:
    root = tmp_path_factory.mktemp("moe") / "project"
    shutil.copytree(prepared.root, root)
    scale = root / "config" / "scales" / "tiny.yaml"
    scale.write_text(yaml.safe_dump(yaml.safe_load(scale.read_text()) | CHANGES))
    return MoeProject(root, prepared.data)


def outcome(out: Path) -> tuple[str, str, str]:
    history = pd.read_csv(out / "history.csv").drop(columns=["train_seconds", "seconds"])
    return hash_file(out / "model.safetensors"), hash_file(out / "last.safetensors"), history.to_csv()


@pytest.fixture(scope="module")
def runs(moe, tmp_path_factory):
    """The folder of a method's run, trained when it is first asked for."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("moe-runs")

    @functools.cache
    def trained(method: str) -> Path:
        assert moe.train(folder / method, method=method) == 0
        return folder / method

    return trained


one_method = pytest.mark.brief(keep=lambda case: case["method"] == "dramoe")


@one_method
@pytest.mark.parametrize("method", METHODS)
def test_a_run_records_what_was_decided_for_it(moe, runs, method):
    recorded = read_run(runs(method))["deviations"]
    assert recorded == deviations(Project(moe.root), "tiny", dataset="digits", method=method)
    assert {"input normalisation", "selection", "clip" if method != "advmoe" else "KL"} <= recorded.keys()


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_inside_an_epoch_to_the_bit(moe, runs, tmp_path, monkeypatch, method):
    """200 images in batches of 40: stopped after 3 of the 5 batches of the second epoch's first half."""
    out, steps = tmp_path / "run", []
    real = engine.Engine._set_learning_rates

    def stop(self, step):
        if len(steps) == 7:
            self.save()
            raise Interrupted("stopped by the test")
        steps.append(step)
        real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_set_learning_rates", stop)
        assert moe.train(out, method=method) == 75
    assert moe.train(out, method=method) == 0
    assert outcome(out) == outcome(runs(method))


@one_method
@pytest.mark.parametrize("method", METHODS)
def test_history_shows_the_router(runs, method):
    history = pd.read_csv(runs(method) / "history.csv")
    for kind in ("clean", "adversarial"):
        loads = history[[f"expert0_load_{kind}", f"expert1_load_{kind}"]]
        assert loads.sum(axis=1).tolist() == pytest.approx([1, 1])
        assert (history[f"router_entropy_{kind}"] > 0).all()
    assert ("router_loss" in history) == (method != "pgd-at-moe")


@one_method
@pytest.mark.parametrize("method", METHODS)
def test_history_shows_both_gradients_and_the_worst(runs, method):
    history = pd.read_csv(runs(method) / "history.csv")
    alone = history[["validation_accuracy_straight_through", "validation_accuracy_detached"]]
    # Validated every second epoch.
    assert alone.notna().all(axis=1).tolist() == [False, True]
    assert (history["validation_accuracy"] <= alone.min(axis=1))[1]
    assert read_run(runs(method))["best_validation_accuracy"] == history["validation_accuracy"][1]


@one_method
@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_built_again_with_its_experts(runs, method):
    run, model = read_run(runs(method)), load_model(runs(method))
    assert isinstance(model, MoeCnn)
    assert (run["model"]["experts"], run["model"]["router"]) == (2, "dcar" if method == "dramoe" else "gap")
    assert run["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.route_logits(torch.rand(3, 3, 16, 16)).shape == (3, 2)


@pytest.mark.long
def test_routed_work_only_is_counted(runs):
    assert 0 < read_run(runs("advmoe"))["macs_per_image"] == read_run(runs("pgd-at-moe"))["macs_per_image"]


def test_an_evaluation_says_which_expert_was_chosen(moe, runs, tmp_path):
    out = tmp_path / "dramoe.parquet"
    command = ["--run", str(runs("dramoe")), "--data", str(moe.data), "--suite", "quick", "--out", str(out)]
    assert main(["--project", str(moe.root), "evaluate", *command]) == 0
    rows = pd.read_parquet(out)
    assert rows["expert_clean"].isin([0, 1]).all()
    assert rows["expert_adversarial"].isin([0, 1]).all()


def test_a_router_gone_wrong_stops_the_run_with_the_batch(moe, tmp_path, monkeypatch, capsys):
    real, calls = MoeCnn.route_logits, []

    def broken(self, x):
        calls.append(1)
        return real(self, x) * (float("nan") if self.training and len(calls) > 20 else 1.0)

    monkeypatch.setattr(MoeCnn, "route_logits", broken)
    assert moe.train(tmp_path / "run", method="advmoe") == 1
    message = capsys.readouterr().err
    assert "method advmoe, epoch 1, batch " in message
    assert "router's scores are not finite for 40 of 40 images" in message
