"""`moat bench`: that it measures real updates, says what of, and feeds the planner. No time is asserted."""

import json
import os
import shutil
from pathlib import Path

import pytest

from moat import benchmarking
from moat.benchmarking import train
from moat.commands import cli
from moat.config.project import Project
from moat.machine import locks
from moat.planning.rates import Rates

ROOT = Path(__file__).parents[2]
QUICK = ("--scale", "quickstart", "--dataset", "digits", "--batch-size", "4", "--repeats", "2", "--warm-up", "1")


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config", ignore=shutil.ignore_patterns("calibration"))
    shutil.copytree(ROOT / "workflow" / "schemas", tmp_path / "workflow" / "schemas")
    # LeNet-5 is the fastest net, and needs larger images than the digits are.
    scale = tmp_path / "config" / "scales" / "quickstart.yaml"
    scale.write_text(scale.read_text().replace("image_size: 8", "image_size: 16"))
    return tmp_path


def bench(project, capsys, *options):
    assert cli.main(["--project", str(project), "bench", *options]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("device", "leased"), [("auto", "a"), ("cuda", "a"), ("cpu", None)])
def test_it_leases_a_gpu_like_a_job(project, capsys, monkeypatch, tmp_path, device, leased):
    monkeypatch.setenv("MOAT_GPUS", "a")
    monkeypatch.setenv("MOAT_LOCKS", str(locks.make_folder(tmp_path / "locks")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = []
    monkeypatch.setattr(
        train, "measure", lambda options: seen.append(os.getenv("CUDA_VISIBLE_DEVICES")) or {"rows": []}
    )
    bench(project, capsys, "train", "--device", device, "--json")
    assert seen == [leased]


def test_rates_of_training_and_evaluation_add_up(project, capsys):
    out = bench(project, capsys, "train", "--methods", "standard,fgsm-at", "--archs", "lenet5", *QUICK, "--json")
    content = json.loads(out)
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


def test_calibration_is_what_the_planner_reads(project, capsys):
    said = []
    for method in ("standard", "dwf"):  # one that starts from other runs, too
        options = ("--methods", method, "--archs", "lenet5", *QUICK, "--calibrate", "--json")
        if method == "dwf":
            options = ("--methods", method, *QUICK, "--batch-size", "2", "--repeats", "1", "--calibrate", "--json")
        said += json.loads(bench(project, capsys, "train", *options))["rows"]
    observed = Rates(Project(project), "cpu").observations
    assert {(each.kind, each.method, each.rate) for each in observed} == {
        (row["kind"], row["method"], row["macs_per_second"]) for row in said
    }
    assert {each.source for each in observed} == {"bench"}


def test_measured_again_replaces_what_was_measured(project, capsys):
    for _ in range(2):
        options = ("--methods", "standard", "--archs", "lenet5", *QUICK, "--calibrate", "--json")
        rows = json.loads(bench(project, capsys, "train", *options))["rows"]
    kept = json.loads((project / "config/calibration/cpu.json").read_text())["rows"]
    assert [row["macs_per_second"] for row in kept] == [row["macs_per_second"] for row in rows]


def test_people_get_a_table_and_a_file(project, capsys, tmp_path):
    out = tmp_path / "out.json"
    text = bench(project, capsys, "train", "--methods", "standard", "--archs", "lenet5", *QUICK, "--out", str(out))
    assert text.splitlines()[0].split()[:3] == ["kind", "method", "arch"]
    assert json.loads(out.read_text())["benchmark"] == "train"


def test_a_script_of_the_project_is_a_benchmark_too(project, capfd):
    (project / "benchmarks").mkdir()
    (project / "benchmarks" / "mine.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)")
    assert cli.main(["--project", str(project), "bench", "list"]) == 0
    assert capfd.readouterr().out.split() == sorted([*benchmarking.names(), "mine"])
    assert cli.main(["--project", str(project), "bench", "mine", "--repeats", "2", "--json"]) == 3
    assert capfd.readouterr().out.strip() == "['--repeats', '2']"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["trian"], "unknown benchmark 'trian' (did you mean 'train'?); allowed: attack"),
        (["train", "--repeats", "0"], "--repeats 0: allowed: 1 or more"),
        (["train", "--methods", "standart", "--scale", "quickstart"], "unknown method 'standart'"),
        (["train", "--archs", "lenet6", "--scale", "quickstart"], "unknown net 'lenet6'"),
    ],
)
def test_wrong_options_are_told_in_a_line(project, capsys, options, said):
    assert cli.main(["--project", str(project), "bench", *options]) == 2
    assert said in capsys.readouterr().err
