"""``moat evaluate`` and ``moat verify`` on a run trained by ``moat train``, and on a classifier from elsewhere."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from journals import lose
from safetensors.torch import load_file, save_file

import moat
from moat.base.errors import ConfigError
from moat.base.files import hash_file, read_json, write_json
from moat.commands import foreign_model, verify
from moat.commands.cli import build_parser, main
from moat.config.project import Project
from moat.config.recipes import digest, resolve_checks
from moat.config.schema import read_yaml
from moat.data import datasets
from moat.evaluation import statistics
from moat.evaluation.evidence import Budget
from moat.models import nets
from project_copy import copy_project


@pytest.fixture
def inside(project, tmp_path, monkeypatch):
    """The working directory is the project; what the test writes goes into the folder given."""
    monkeypatch.chdir(project)
    return tmp_path


def evaluate(out, *options, suite="quick"):
    return main(["evaluate", "--suite", suite, "--out", str(out), "--journal", str(out.parent / "journal"), *options])


def test_rows_and_json(inside):
    out = inside / "quick.parquet"
    assert evaluate(out, "--run", "run") == 0
    frame, content = pd.read_parquet(out), json.loads((inside / "quick.json").read_text())
    assert list(frame.columns) == ["setting", "index", "label", "predicted", "correct", "confidence", "linf", "steps"]
    assert frame["setting"].unique().tolist() == ["clean", "fgsm", "pgd10"]
    assert frame.groupby("setting").size().tolist() == [30, 30, 30]
    assert pq.read_metadata(out).row_group(0).column(0).compression == "ZSTD"
    run = json.loads(Path("run/run.json").read_text())
    expected = {"dataset": "digits", "arch": "resnet18", "method": "standard", "class": "standard", "seed": 0}
    expected |= {"mixture": None, "scale": "tiny", "weights": "best", "model_sha256": run["model_sha256"]}
    assert content["run"] == expected
    assert content["run"]["model_sha256"] == hash_file("run/model.safetensors")
    assert content["data"]["sha256"] == hash_file("digits.safetensors") and content["n"] == 30
    assert content["settings"]["pgd10"]["eps"] == 8 / 255 and content["settings"]["pgd10"]["restarts"] == 1
    for setting, found in content["accuracy"].items():
        correct = int(frame[frame["setting"] == setting]["correct"].sum())
        assert (found["correct"], found["n"], found["accuracy"]) == (correct, 30, correct / 30)
        assert (found["low"], found["high"]) == statistics.wilson(correct, 30)
    assert {"seconds", "images_per_second", "hardware", "versions", "sources"} <= set(content)
    assert set(content["sources"]) == {"nets", "attacks", "evaluation"}


def test_indices_are_those_of_the_official_split(inside):
    split = datasets.load(Path("digits.safetensors"), splits=("test",)).splits["test"]
    evaluate(inside / "q.parquet", "--run", "run", "--limit", "7")
    clean = pd.read_parquet(inside / "q.parquet").query("setting == 'clean'")
    assert clean["index"].tolist() == split.columns["index"][:7].tolist()
    assert clean["label"].tolist() == split.labels[:7].tolist()


@pytest.mark.brief(keep=lambda case: "5" in case["options"])
@pytest.mark.parametrize(("options", "n"), [((), 30), (("--limit", "all"), 40), (("--limit", "5"), 5)])
def test_limit(inside, options, n):
    evaluate(inside / "q.parquet", "--run", "run", *options)
    assert json.loads((inside / "q.json").read_text())["n"] == n


def test_finished_settings_are_kept_and_give_the_same_rows(inside, capsys):
    out = inside / "quick.parquet"
    evaluate(out, "--run", "run", "--batch-size", "16")
    first = pd.read_parquet(out)
    lose(inside / "journal", 1)
    capsys.readouterr()
    evaluate(out, "--run", "run", "--batch-size", "16")
    # The last line sums them up.
    *lines, _ = capsys.readouterr().out.splitlines()
    assert ["before" in line for line in lines] == [True, False, True]
    pd.testing.assert_frame_equal(pd.read_parquet(out), first)


@pytest.mark.brief(keep=lambda case: case["change"][0] == "--limit")
@pytest.mark.parametrize("change", [("--limit", "10"), ("--weights", "last")])
def test_finished_settings_of_something_else_are_not_used(inside, capsys, change):
    out = inside / "quick.parquet"
    if change == ("--weights", "last"):
        # After one epoch both are the same weights: make them differ.
        run = inside / "other"
        shutil.copytree("run", run)
        torch.manual_seed(1)
        model = nets.build("resnet18", 10, **read_json(run / "run.json")["model"])
        save_file(model.state_dict(), run / "last.safetensors")
        write_json(
            run / "run.json", {**read_json(run / "run.json"), "last_sha256": hash_file(run / "last.safetensors")}
        )
    else:
        run = Path("run")
    evaluate(out, "--run", str(run))
    capsys.readouterr()
    evaluate(out, "--run", str(run), *change)
    assert "before" not in capsys.readouterr().out


# A shell that starts these tests in the background lets its children ignore Ctrl-C.
AS_FROM_A_TERMINAL = """
import signal, sys
from moat.commands import foreign_model, verify
from moat.commands.cli import build_parser, main
from moat.config.project import Project
from moat.config.recipes import digest, resolve_checks
from moat.config.schema import read_yaml
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 75)])
def test_a_stopped_evaluation_loses_one_setting_at_most(inside, number, code):
    out = inside / "dramoe.parquet"
    command = [sys.executable, "-c", AS_FROM_A_TERMINAL, "evaluate", "--run", "run", "--suite", "dramoe"]
    command += ["--out", str(out), "--journal", str(inside / "journal")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        # First come those settings that need a router.
        measured = (line.split(":")[0] for line in process.stdout if "_det" not in line)
        finished = list(itertools.islice(measured, 3))
        process.send_signal(number)
        assert process.wait(60) == code
    assert finished == ["clean", "fgsm", "bim"] and not out.exists()
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    # The last line sums them up.
    again = again.splitlines()[:-1]
    kept = [line.split(":")[0] for line in again if "measured before" in line]
    assert kept[:3] == finished and len([line for line in again if "_det" not in line]) == 7
    uninterrupted = inside / "uninterrupted" / "dramoe.parquet"
    evaluate(uninterrupted, "--run", "run", suite="dramoe")
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(uninterrupted))


@pytest.mark.parametrize(
    ("checks", "typed", "made"),
    [
        ({"limit": 9, "steps": 3, "queries": 7}, [], {}),
        ({"steps": 3}, [], {}),
        # More images than evaluations have.
        ({"limit": 35}, [], {}),
        ({}, [], {}),
        ({"limit": 9, "steps": 3, "queries": 7}, ["--steps", "5"], {"steps": 5}),
        ({"limit": 9}, ["--limit", "6"], {"limit": 6}),
    ],
)
def test_checks_of_a_run_spend_what_its_scale_says(project, tmp_path, checks, typed, made):
    """So they are not stale as soon as they are made."""
    copy_project(tmp_path, of=project)
    scale = read_yaml(project / "config/scales/tiny.yaml") | {"checks": checks}
    (tmp_path / "config/scales/tiny.yaml").write_text(yaml.safe_dump(scale))
    options = ["--run", str(project / "run"), "--data", str(project / "digits.safetensors"), "--out", "c.json", *typed]
    asked = verify.request(build_parser().parse_args(["--project", str(tmp_path), "verify", *options]))
    wanted = resolve_checks(Project(tmp_path), "tiny") | made
    assert asked.recipe_digest == digest(wanted)
    assert {**asked.budget, "limit": asked.target.limit}.items() <= wanted.items()


def test_checks_of_a_run(inside, capsys):
    assert main(["verify", "--run", "run", "--out", str(inside / "checks.json"), "--limit", "20", "--steps", "4"]) == 0
    content = json.loads((inside / "checks.json").read_text())
    assert content["n"] == 20 and content["passed"] == (not content["failed"])
    assert [check["check"] for check in content["checks"]][:2] == ["threat-model", "determinism"]
    assert {"worst_case_accuracy", "run", "sources", "data", "hardware"} <= set(content)
    assert content["run"]["model_sha256"] == hash_file("run/model.safetensors")
    *lines, counts, worst = capsys.readouterr().out.splitlines()
    shown = {"failed": "FAILED", "not-applicable": "n/a"}
    few = ("not-enough-examples", "not-enough-queries")
    shown |= dict.fromkeys(few, "too few")
    assert [(line[:7].rstrip(), line[8:].split()[0]) for line in lines] == [
        (shown.get(each["state"], each["state"]), each["check"]) for each in content["checks"]
    ]
    number = Counter(each["state"] for each in content["checks"])
    asked = number["passed"] + number["failed"]
    undecided = [each["check"] for each in content["checks"] if each["state"] in (*few, "unknown")]
    assert "black-box" in undecided and "determinism" not in undecided
    assert counts == (
        f"{number['passed']} of {asked} checks passed; {number['not-applicable']} not applicable; "
        f"undecided: {', '.join(undecided)}"
    )
    assert worst.startswith(f"worst case: {content['worst_case_accuracy']:.1%} [") and worst.endswith("n = 20")


def test_python_gives_the_rows_of_the_command(inside):
    assert evaluate(inside / "q.parquet", "--run", "run", "--batch-size", "16") == 0
    expected = pd.read_parquet(inside / "q.parquet")
    split = datasets.load(Path("digits.safetensors"), splits=("test",)).splits["test"]
    settings = json.loads((inside / "q.json").read_text())["settings"]
    indices = split.columns["index"][:30].tolist()
    model = moat.load("run")
    assert not model.training
    rows = moat.evaluate(model, split.images[:30], split.labels[:30], settings, batch_size=16, indices=indices)
    pd.testing.assert_frame_equal(rows, expected)
    report = moat.verify(model, split.images[:4], split.labels[:4], budget=Budget(steps=2, queries=4))
    assert (report.n, report.eps) == (4, 8 / 255)
    with pytest.raises(ConfigError, match=r"settings: \['pgd10'\]; needed: a mapping, name -> setting"):
        moat.evaluate(model, split.images[:4], split.labels[:4], ["pgd10"], batch_size=4)
    with pytest.raises(ConfigError, match="unknown weights 'newest'.*allowed: best, last"):
        moat.load("run", weights="newest")


FOREIGN_OPTIONS = (
    "--model",
    "elsewhere:make",
    "--weights",
    "lenet.safetensors",
    "--dataset-file",
    "digits.safetensors",
)


@pytest.mark.brief(keep=lambda case: case["form"] == "safetensors")
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_anybodys_classifier(inside, form):
    weights = Path("lenet.safetensors")
    if form == "torch":
        torch.save(load_file(weights), inside / "lenet.pt")
        weights = inside / "lenet.pt"
    options = list(FOREIGN_OPTIONS)
    options[3] = str(weights)
    assert evaluate(inside / "q.parquet", *options) == 0
    content = json.loads((inside / "q.json").read_text())
    code = content["run"].pop("code_sha256")
    assert code == foreign_model.code_hash("elsewhere:make")
    assert content["run"] == {"model": "elsewhere:make", "weights": str(weights), "model_sha256": hash_file(weights)}
    assert content["n"] == 40
    clean = pd.read_parquet(inside / "q.parquet").query("setting == 'clean'")
    split = datasets.load(Path("digits.safetensors"), splits=("test",)).splits["test"]
    model = nets.build("lenet5", 10, image_size=16).eval()
    model.load_state_dict(load_file("lenet.safetensors"))
    with torch.no_grad():
        predicted = model(split.images.permute(0, 3, 1, 2) / 255).argmax(1)
    assert clean["predicted"].tolist() == predicted.tolist()


@pytest.mark.long
def test_checks_of_anybodys_classifier(inside):
    assert main(["verify", "--out", str(inside / "g.json"), "--limit", "10", *FOREIGN_OPTIONS]) == 0
    assert json.loads((inside / "g.json").read_text())["run"]["model"] == "elsewhere:make"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--run", "run", "--suite", "qick"], 2, ["'qick'", "did you mean 'quick'"]),
        (["--run", "nowhere"], 3, ["nowhere", "no such file"]),
        ([], 2, ["--run DIR", "--model"]),
        (["--run", "run", *FOREIGN_OPTIONS], 2, ["either --run DIR or --model"]),
        (["--run", "run", "--weights", "newest"], 2, ["newest", "best, last"]),
        (["--run", "run", "--data", "none.safetensors"], 3, ["none.safetensors", "no such file"]),
        (["--run", "run", "--device", "tpu9"], 2, ["tpu9", "cpu"]),
        (["--model", "elsewhere:make"], 2, ["--dataset NAME", "--dataset-file FILE"]),
        ([*FOREIGN_OPTIONS, "--dataset", "digits"], 2, ["either --dataset NAME or --data FILE"]),
        ([*FOREIGN_OPTIONS[:2], "--dataset", "Digits"], 2, ["'Digits'", "did you mean 'digits'"]),
        ([*FOREIGN_OPTIONS[:2], "--dataset", "cifar10"], 3, ["`moat fetch cifar10 --into resources/cifar10` gets it"]),
        (
            [*FOREIGN_OPTIONS[:2], "--dataset", "cifar10-jpeg"],
            3,
            ["`moat fetch cifar10-jpeg --into resources/cifar10-jpeg --mirror URL_OR_DIR` gets it"],
        ),
        (["--model", "elsewhere", *FOREIGN_OPTIONS[2:]], 2, ["elsewhere", "MODULE:FACTORY"]),
        (["--model", "nowhere:make", *FOREIGN_OPTIONS[2:]], 2, ["nowhere", "imported"]),
        (["--model", "elsewhere:mak", *FOREIGN_OPTIONS[2:]], 2, ["elsewhere:mak", "mak"]),
        (["--model", "elsewhere:wrong", *FOREIGN_OPTIONS[2:]], 2, ["str", "torch.nn.Module"]),
        ([*FOREIGN_OPTIONS, "--weights", "missing.pt"], 3, ["missing.pt", "no such file"]),
        ([*FOREIGN_OPTIONS, "--weights", "elsewhere.py"], 3, ["elsewhere.py"]),
        ([*FOREIGN_OPTIONS, "--weights", "run/model.safetensors"], 3, ["model.safetensors", "cannot be loaded"]),
    ],
)
def test_wrong_usage_is_one_line_with_its_exit_code(inside, capsys, options, code, words):
    assert evaluate(inside / "q.parquet", *options) == code
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("moat evaluate: ") and all(word in message for word in words), message
    assert not (inside / "q.parquet").exists()


LARGER = """
import torch
import yaml
from torch import nn

class Refuses(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)
    def forward(self, x):
        return self.head(x.flatten(1))

class Pairs(Refuses):
    def forward(self, x):
        return x.mean((2, 3)), x

class Images(Refuses):
    def forward(self, x):
        return x

refuses, pairs, whole = Refuses, Pairs, Images
"""


@pytest.mark.brief(keep=lambda case: case["command"] == "evaluate")
@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("refuses", ["fails (RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x768 and 3072x10))"]),
        ("pairs", ["returns a tuple; logits (2, classes) are needed"]),
        ("whole", ["returns (2, 3, 16, 16); logits (2, classes) are needed"]),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_a_model_that_does_not_take_the_images_is_one_line(inside, capsys, monkeypatch, command, factory, words):
    monkeypatch.syspath_prepend(inside)
    (inside / "larger.py").write_text(LARGER)
    save_file({"head.weight": torch.zeros(10, 3072), "head.bias": torch.zeros(10)}, inside / "larger.safetensors")
    options = ["--model", f"larger:{factory}", "--weights", str(inside / "larger.safetensors")]
    out = {"evaluate": ["--suite", "quick", "--out", "q.parquet"], "verify": ["--out", "g.json"]}[command]
    out[-1] = str(inside / out[-1])
    assert main([command, *options, "--dataset-file", "digits.safetensors", *out]) == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]
    given = "--data digits.safetensors: given images float32 (2, 3, 16, 16) in [0, 1], the model"
    assert message.startswith(f"moat {command}: --model larger:{factory} {given} "), message
    assert all(word in message for word in words), message


def test_weights_that_would_run_code_are_refused(inside, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(inside / "owned"),)

    torch.save({"a": Evil()}, inside / "evil.pt")
    assert evaluate(inside / "q.parquet", *FOREIGN_OPTIONS, "--weights", str(inside / "evil.pt")) == 3
    assert "evil.pt" in capsys.readouterr().err and not (inside / "owned").exists()


def test_the_out_file_must_be_parquet(inside, capsys):
    assert main(["evaluate", "--run", "run", "--suite", "quick", "--out", str(inside / "q.csv")]) == 2
    assert ".parquet" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--limit", "0"], ["--limit", "-1"], ["--batch-size", "x"]])
def test_numbers_are_checked_by_the_parser(inside, options):
    with pytest.raises(SystemExit) as caught:
        evaluate(inside / "q.parquet", "--run", "run", *options)
    assert caught.value.code == 2


@pytest.mark.long
def test_corruptions_are_a_suite(inside):
    """95 settings and clean images, none of them written by hand; means over severities in the record."""
    assert evaluate(inside / "c.parquet", "--run", "run", "--limit", "6", suite="corruptions-imagenet") == 0
    content = json.loads((inside / "c.json").read_text())
    assert len(content["settings"]) == len(content["accuracy"]) == 96 and content["n"] == 6
    assert content["settings"]["fog-3-imagenet"]["source"] == "generated"
    means = content["corruptions"]["imagenet-c"]
    assert len(means["mean"]) == 19 and means["source"] == "generated"
    accuracy = [found["accuracy"] for name, found in content["accuracy"].items() if name != "clean"]
    assert means["overall"]["accuracy"] == pytest.approx(sum(accuracy) / 95)
    frame = pd.read_parquet(inside / "c.parquet")
    assert len(frame) == 96 * 6 and (frame["steps"] == 0).all()
