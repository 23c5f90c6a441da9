"""The benchmark table: each benchmark compares equal things, rows are kept, and the page says what the files say."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import attack
import autoattack
import convolution
import corruptions
import data
import gpu
import mixture
import moe
import scaling
import table
import train
from benchlib import command, masked, narrow, records, trained
from moat import models
from moat.kernels import winograd
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
TINY = ("--repeats", "2", "--json")


@pytest.fixture
def project(tmp_path):
    copy_project(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / records.TARGETS, tmp_path / records.TARGETS)
    return tmp_path


@pytest.fixture
def rows(project, capsys):
    def run(benchmark, *options):
        assert command.main(benchmark, ["--project", str(project), *options, *TINY]) == 0
        return {(row["id"], row["case"]): row for row in json.loads(capsys.readouterr().out)["rows"]}

    return run


@pytest.mark.long
def test_compiled_convolution_is_compared_in_rounding_too(project, capsys):
    if winograd.library() is None:
        pytest.skip("winograd.cpp is not compiled here")
    assert command.main(convolution, ["--project", str(project), "--layers", "1", *TINY]) == 0
    plain, strided = json.loads(capsys.readouterr().out)["rows"]
    for row, beside in ((plain, "training"), (strided, "gradient")):
        assert {"winograd", "oneDNN", "oneDNN, ordered"} <= row["us_per_image"].keys() == row["rounding"].keys()
        assert 0 < row["rounding"]["winograd"] < 4 * row["rounding"]["oneDNN"] < 1e-6
        for found in (row, row[beside]):
            assert 0 < found["low"] <= found["ratio"] <= found["high"]
        assert set(row[beside]["us_per_image"]) == {"ours", "PyTorch"}
        assert row["compiled_for"] == winograd.instructions()
    assert strided["case"] == plain["case"].replace("8 channels", "16 channels") + ", stride 2"


@pytest.mark.long
def test_attacks_are_equal_and_a_missing_library_is_said(rows, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "art.estimators.classification", None)
    found = rows(attack, "--widths", "4", "--batch-size", "2", "--run", str(tmp_path / "none"))
    assert list(found) == [
        (4, "width 4"), (5, "width 4, foolbox"), (5, "width 4, art"), (6, "width 4"), (7, "width 4"),
    ]  # fmt: skip
    missing = found.pop((5, "width 4, art"))
    assert missing["ratio"] is None and "benchmarks/requirements.txt" in missing["not_measured"]
    for key, row in found.items():
        if "not_measured" in row:  # not installed here
            continue
        assert 0 < row["low"] <= row["ratio"] <= row["high"] and row["n"] == 2, key
        if key[0] != 6:
            assert row["exact"]["float64_largest_difference"] <= 1e-12, key
    assert "none: no such run" in found[6, "width 4"].get("exact", {}).get("verdicts", "none: no such run")


@pytest.mark.long
def test_routed_training_and_attack_are_the_definition(rows):
    found = rows(moe, "--width", "8", "--batch-size", "8", "--steps", "2")
    assert list(found) == [(1, "width 8"), (2, "2 experts"), (2, "8 experts"), (3, "width 8, batches of 8")]
    for key in ((1, "width 8"), (2, "2 experts"), (2, "8 experts")):
        assert found[key]["exact"]["float64_largest_difference"] <= 1e-12, key
    # With targets where there are some, and the released order of a router for itself and one for the model.
    assert (found[2, "8 experts"]["floor"], found[2, "8 experts"]["aim"]) == (4.5, 6.0)
    assert found[1, "width 8"]["floor"] is None


@pytest.mark.long
def test_rows_about_a_gpu_are_measured_or_say_why_not(project, capsys, rows):
    options = ("--scale", "smoke", "--dataset", "digits", "--archs", "resnet18", "--large", "resnet18")
    found = rows(gpu, *options, "--batch-size", "8", "--device", "cpu")
    assert list(found) == [(14, "ResNet-18"), (15, ""), (16, ""), (17, ""), (18, "")]
    # The peak of no CPU is known, and its memory is not counted.
    assert "planner.yaml" in found[14, "ResNet-18"]["not_measured"] and found[14, "ResNet-18"]["images_per_second"] > 0
    assert all("CUDA" in found[number, ""]["not_measured"] for number in (16, 18))
    assert found[15, ""]["ratio"] > 0 and sum(found[15, ""]["load"]) == 8
    hours = found[17, ""]
    assert set(hours["parts"]) == {"dwf", "dwf-expert-benign", "dwf-expert-fgsm", "dwf-expert-pgd"}
    seconds = sum(
        part["times"] * part["epochs"] * hours["images"] / part["images_per_second"] for part in hours["parts"].values()
    )
    assert hours["ratio"] == pytest.approx(seconds / 3600, rel=0.02, abs=1e-3) and hours["unit"] == "h"


def test_units_are_read_and_less_may_be_better():
    cases = [
        ("35 %", "45 %", 40, "floor"),
        ("12 h", "7 h", 6.5, "aim"),
        ("16 GB", "8 GB", 17, "**no**"),
        (2, 3, 3, "aim"),
    ]
    for floor, aim, ratio, expected in cases:
        assert table.met({"floor": floor, "aim": aim, "ratio": ratio}) == expected
    row = {
        "what": "w",
        "against": "a",
        "floor": "12 h",
        "aim": "7 h",
        "ratio": 6.5,
        "low": 6,
        "high": 7,
        "n": 3,
        "unit": "h",
    }
    assert table._cells(17, row, row)[5] == "6.5 h (6 to 7, 3)"


@pytest.mark.long
def test_autoattack_has_the_packages_verdicts(project, capsys, monkeypatch):
    torch.manual_seed(0)
    model, x = models.build("resnet18", 10, width=1 / 32).eval(), torch.rand(4, 3, 32, 32)
    monkeypatch.setattr(trained, "load", lambda arguments: (model, x, model(x).argmax(1)))
    monkeypatch.setattr(autoattack, "EPS", 0.5)  # far from any margin
    options = ("--cases", "2", "--slices", "2", "--queries", "5", "--json")
    assert command.main(autoattack, ["--project", str(project), *options]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["id"], row["case"], row["differences"], row["images"]) == (9, "width 2", 0, 4)
    assert row["robust_accuracy"] == row["robust_accuracy_of_package"]
    assert {name: len(seconds) for name, seconds in row["seconds"].items()} == {"package": 2, "float32": 2}


@pytest.mark.long
def test_a_narrow_net_is_trained_once(monkeypatch, tmp_path):
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    splits = {"train": SimpleNamespace(images=images, labels=torch.arange(8))}
    run = {"num_classes": 10, "model": {"normalize": "cifar10"}}
    run["data"] = {"path": "none", "sha256": "0" * 64, "train_images": 8}
    monkeypatch.setattr(narrow, "read_run", lambda folder: run)
    monkeypatch.setattr(narrow.datasets, "load", lambda path, names: SimpleNamespace(splits=splits))
    arguments = SimpleNamespace(run_dir=tmp_path, data=None, nets=tmp_path / "nets")
    first = narrow.load(arguments, 2)
    splits.clear()
    again = narrow.load(arguments, 2)
    assert first.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    torch.manual_seed(0)
    fresh = models.build("resnet18", 10, width=2 / 64, normalize="cifar10")
    assert not torch.equal(fresh.head.weight, again.head.weight) and not again.training


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dwf", "mocse"])
def test_mixtures_give_the_same_however_they_are_computed(rows, kind):
    found = rows(mixture, "--mixtures", kind, "--widths", "4", "--batch-size", "2")
    assert list(found) == [(8, f"{kind}, width 4, update"), (8, f"{kind}, width 4, attack step")]
    for row in found.values():
        assert len(row["exact"]) == 4 and max(row["exact"].values()) <= 1e-12
        assert row["ms_per_image"].keys() == {"ours", "plain", "grouped"}


@pytest.mark.long
def test_batches_and_curves(rows, project, capsys):
    assert rows(data, "--images", "256")[12, ""]["floor"] == 9
    options = ("--width", "4", "--sizes", "1,2", "--experts", "2,4", "--batch-size", "4")
    assert command.main(scaling, ["--project", str(project), *options, *TINY]) == 0
    curves = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["curve"], row["case"], [point["x"] for point in row["points"]]) for row in curves] == [
        ("batch", "PGD-10", [1, 2]), ("experts", "routed", [2, 4]), ("experts", "masked", [2, 4]),
    ]  # fmt: skip


@pytest.mark.long
def test_another_update_is_seen(monkeypatch, rows):
    """What the equality is worth: with its divergences the other way round the peer ends elsewhere."""
    original = masked._kl
    monkeypatch.setattr(masked, "_kl", lambda p, q: original(q, p))
    row = rows(moe, "--width", "8", "--batch-size", "8", "--steps", "2", "--rows", "1")[1, "width 8"]
    assert row["exact"]["float64_largest_difference"] > 1e-6


@pytest.mark.long
def test_kept_rows_replace_those_of_the_same_case(project, rows, capsys):
    options = ("--mixtures", "dwf", "--widths", "4", "--batch-size", "2", "--record", "--note", "a test")
    first = rows(mixture, *options)
    rows(data, "--images", "256", "--record")
    second = rows(mixture, *options)
    (path,) = (project / records.RESULTS).glob("*.json")
    kept = json.loads(path.read_text())
    assert [(row["id"], row["case"]) for row in kept["rows"]] == [*first, (12, "")]
    assert kept["rows"][0]["ratio"] == second[8, "dwf, width 4, update"]["ratio"]
    assert kept["rows"][0]["note"] == "a test"
    assert (
        kept["rows"][0]["command"]
        == "python benchmarks/mixture.py --mixtures dwf --widths 4 --batch-size 2 --repeats 2"
    )
    assert kept["hardware"]["cores"] and kept["versions"]["torch"]


def test_corruptions_have_the_targets_of_their_peer():
    row = corruptions._row("imagecorruptions", {"imagecorruptions": [24.0, 44.0, 90.0], "moat": [2.0, 2.0, 3.0]}, 19)
    assert (row["id"], row["case"], row["floor"], row["aim"]) == (13, "imagecorruptions", 10, 20)
    assert (row["ratio"], row["low"], row["high"], row["n"]) == (22.0, 12.0, 30.0, 3)


@pytest.mark.long
def test_a_wider_net_computes_the_same():
    torch.manual_seed(0)
    model = models.build("resnet18", 10, width=1 / 16).double().train()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    for _ in range(3):
        model(x)  # statistics that are not 0 and 1
    wide = trained.widened(model.eval(), 3).double()
    stem = next(module for module in wide.modules() if isinstance(module, torch.nn.Conv2d))
    assert stem.out_channels == 12
    with torch.no_grad():
        torch.testing.assert_close(wide(x), model(x), rtol=1e-5, atol=1e-6)


# -- the page ---------------------------------------------------------------
def test_the_page_says_what_the_files_say():
    lines = table.table(records.targets(ROOT), table.measured(ROOT / records.RESULTS))
    text = table.page(table.README.read_text(), lines)
    text = table.page(text, table.layers(ROOT / records.RESULTS), table.LAYERS)
    assert text == table.README.read_text(), "python benchmarks/table.py"


@pytest.mark.parametrize("benchmark", [attack, autoattack, convolution, data, gpu, mixture, moe, scaling, train])
def test_printed_and_recorded_commands_are_understood(benchmark):
    script = f"python benchmarks/{Path(benchmark.__file__).name}"
    printed = re.findall(rf"{script}[^`\n]*", table.README.read_text() + benchmark.__doc__)
    kept = [row for path in (ROOT / records.RESULTS).glob("*.json") for row in json.loads(path.read_text())["rows"]]
    recorded = [row["command"] for row in kept if row.get("command", "").startswith(script)]
    assert printed and (recorded or benchmark in (gpu, train))
    for line in {*printed, *recorded}:
        command.parser_of(benchmark).parse_args(shlex.split(line.replace("[", "").replace("]", ""))[2:])


def test_every_printed_script_is_there():
    scripts = set(re.findall(r"benchmarks/(\w+\.py)", table.README.read_text()))
    assert {"compare.py", "dag.py", "train.py"} < scripts
    assert scripts <= {path.name for path in (ROOT / "benchmarks").iterdir()}


def test_every_row_of_the_issue_is_there_and_no_target_was_lowered():
    targets, found = records.targets(ROOT), table.measured(ROOT / records.RESULTS)
    assert list(targets) == list(range(1, 19))
    for number, rows in found.items():
        limits = [tuple(limits) for limits in targets[number]["cases"].values()]
        for row in rows:
            assert (row["floor"], row["aim"]) in limits, row


@pytest.mark.parametrize(
    ("ratio", "met"), [(0.99, "**no**"), (1.0, "floor"), (1.19, "floor"), (1.2, "aim"), (3, "aim")]
)
def test_what_is_reached(ratio, met):
    assert table.met({"ratio": ratio, "floor": 1.0, "aim": 1.2}) == met
