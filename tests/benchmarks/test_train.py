"""benchmarks/train.py measures real updates, reports their conditions, and feeds the planner. No time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from benchlib import command
from moat.config.project import Project
from moat.machine import devices, locks
from moat.planning.rates import Rates
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
QUICK = ("--scale", "smoke", "--dataset", "digits", "--batch-size", "4", "--repeats", "2", "--warm-up", "1")


@pytest.fixture
def project(tmp_path):
    copy_project(tmp_path)
    # LeNet-5 is the fastest net, and needs larger images than the digits are.
    scale = tmp_path / "config" / "scales" / "smoke.yaml"
    scale.write_text(scale.read_text().replace("image_size: 8", "image_size: 16"))
    return tmp_path


@pytest.fixture
def run(project, capsys):
    def run(*options):
        assert command.main(train, ["--project", str(project), *options]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(("device", "leased"), [("auto", "a"), ("cuda", "a"), ("cpu", None)])
def test_it_leases_a_gpu_like_a_job(run, monkeypatch, tmp_path, device, leased):
    monkeypatch.setenv("MOAT_GPUS", "a")
    monkeypatch.setenv("MOAT_LOCKS", str(locks.make_folder(tmp_path / "locks")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = []
    monkeypatch.setattr(devices, "select", lambda name, threads: torch.device("cpu"))
    monkeypatch.setattr(train, "measure", lambda arguments: seen.append(os.getenv("CUDA_VISIBLE_DEVICES")) or [])
    run("--device", device, "--json")
    assert seen == [leased]


@pytest.mark.long
def test_rates_of_training_and_evaluation_add_up(run):
    content = json.loads(run("--methods", "standard,fgsm-at", "--archs", "lenet5", *QUICK, "--json"))
    assert content["device"] == "cpu" and content["versions"]["torch"] and content["hardware"]["cpu"]
    assert [(row["kind"], row["method"]) for row in content["rows"]] == [
        ("train", "standard"), ("evaluate", "standard"), ("train", "fgsm-at"), ("evaluate", "fgsm-at"),
    ]  # fmt: skip
    for row in content["rows"]:
        assert row["passes"] == {"train": {"standard": 3, "fgsm-at": 4}[row["method"]], "evaluate": 20}[row["kind"]]
        seconds = row["seconds"]
        assert seconds["n"] == 2 and 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
        rate = 4 / seconds["median"]
        assert row["images_per_second"] == pytest.approx(rate, rel=0.01, abs=0.01)
        assert row["macs_per_second"] == pytest.approx(rate * row["passes"] * row["macs"])
        assert (row["precision"], row["utilisation"]) == ("float32", None)
        assert row["of_matrix_product"] > 0


@pytest.mark.long
def test_calibration_is_what_the_planner_reads(project, run):
    measured = []
    for method in ("standard", "dwf"):  # one that starts from other runs, too
        options = ("--methods", method, "--archs", "lenet5", *QUICK, "--calibrate", "--json")
        if method == "dwf":
            options = ("--methods", method, *QUICK, "--batch-size", "2", "--repeats", "1", "--calibrate", "--json")
        measured += json.loads(run(*options))["rows"]
    observed = Rates(Project(project), "cpu").observations
    assert {(each.kind, each.method, each.rate) for each in observed} == {
        (row["kind"], row["method"], row["macs_per_second"]) for row in measured
    }
    assert {each.source for each in observed} == {"calibration"}


@pytest.mark.long
def test_measured_again_replaces_what_was_measured(project, run):
    for _ in range(2):
        options = ("--methods", "standard", "--archs", "lenet5", *QUICK, "--calibrate", "--json")
        rows = json.loads(run(*options))["rows"]
    kept = json.loads((project / "config/calibration/cpu.json").read_text())["rows"]
    assert [row["macs_per_second"] for row in kept] == [row["macs_per_second"] for row in rows]


@pytest.mark.long
def test_people_get_a_table_and_a_file(run, tmp_path):
    out = tmp_path / "out.json"
    text = run("--methods", "standard", "--archs", "lenet5", *QUICK, "--out", str(out))
    assert text.splitlines()[0].split()[:3] == ["kind", "method", "arch"]
    assert json.loads(out.read_text())["benchmark"] == "train"


@pytest.mark.long
def test_the_script_runs_by_itself_in_any_folder(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "train.py"), "--archs", "lenet6", "--scale", "smoke"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "benchmarks/train.py: unknown net 'lenet6'" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "--repeats 0: allowed: 1 or more"),
        (["--methods", "standart", "--scale", "smoke"], "unknown method 'standart'"),
        (["--archs", "lenet6", "--scale", "smoke"], "unknown net 'lenet6'"),
    ],
)
def test_wrong_options_are_reported_in_one_line(project, capsys, options, message):
    assert command.main(train, ["--project", str(project), *options]) == 2
    assert message in capsys.readouterr().err
