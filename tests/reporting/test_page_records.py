"""What the page says of pictures, of the run, and of what is missing."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from reporting_tree import make_stale, rows

from moat.base.errors import DataError
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.config.status import Statuses
from moat.reporting import pictures, problems, records, usage
from moat.reporting.results import Results


@pytest.fixture
def found(project, tree):
    """What a function of the grid and the results says; the results as they are when it is called."""

    def call(function):
        grid = build_grid(Project(project), "smoke", ["unified", "dramoe"])
        return function(grid, Results(tree.root, "smoke", project=Project(project)))

    return call


def change(path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}) + "\n")


def summarise(grid, results) -> dict:
    return usage.summarise(grid, results, Statuses(results, grid, ["unified", "dramoe"]))


def by_rule(summary) -> dict[str, dict]:
    return {rule["name"]: rule for rule in summary["rules"]}


def test_what_all_runs_decided_is_said_once_and_the_rest_by_run(tree, found):
    for method in ("standard", "pgd-at", "trades"):
        tree.run(method=method)
    said = {
        "standard": {"precision": "bf16", "selection": "clean"},
        "pgd-at": {"precision": "bf16", "selection": "PGD-10"},
        "trades": {"precision": "bf16", "selection": "PGD-10"},
    }
    for method, each in said.items():
        change(tree.base / f"runs/digits/resnet18/{method}/seed0/run.json", deviations=each)
    runs = found(records.runs)
    shared, groups = records.deviations(runs)
    assert shared == {"precision": "bf16"}
    assert {frozenset(each["names"]): each["deviations"] for each in groups} == {
        frozenset({"standard on digits"}): {"selection": "clean"},
        frozenset({"pgd-at on digits", "trades on digits"}): {"selection": "PGD-10"},
    }
    assert {runs[number]["method"] for each in groups for number in each["runs"]} == said.keys()


def test_runs_that_recorded_no_decisions_say_none(tree, found):
    tree.run(method="standard")
    change(tree.base / "runs/digits/resnet18/standard/seed0/run.json", deviations={})
    assert records.deviations(found(records.runs)) == ({}, [])


def test_rules_are_counted_and_timed(tree, found):
    tree.everything(methods=["standard", "pgd-at"])
    runs = [tree.base / f"runs/digits/resnet18/{method}/seed0/run.json" for method in ("standard", "pgd-at")]
    change(runs[0], wall_seconds=20.0, cpu_seconds=19.9, peak_host_memory_bytes=512 * 2**20)
    change(runs[1], wall_seconds=100.5, cpu_seconds=180.3, peak_host_memory_bytes=900 * 2**20)
    said = by_rule(found(summarise))
    assert list(said) == ["prepare", "train", "evaluate", "verify", "tabulate", "draw"]
    assert [(said[name]["asked"], said[name]["done"]) for name in said] == [
        (1, 0),
        (3, 2),
        (6, 4),
        (3, 2),
        (2, 0),
        (2, 0),
    ]
    train = said["train"]
    assert (train["wall"], train["longest"]) == ("2 min 0 s", "1 min 40 s")
    assert (train["cpu"], train["memory"]) == ("3 min 20 s", "900 MiB")
    # Older records say less, those of tables nothing.
    assert (said["evaluate"]["wall"], said["evaluate"]["cpu"], said["evaluate"]["memory"]) == ("49 s", None, None)
    assert (said["draw"]["wall"], said["draw"]["longest"]) == (None, None)


def test_gpu_hours_hardware_and_versions(tree, found):
    tree.everything(methods=["standard", "pgd-at"])
    gpu = {"gpus": ["A GPU"], "cpu": "a CPU", "cores": 2}
    change(tree.base / "runs/digits/resnet18/standard/seed0/run.json", gpu_seconds=1800, hardware=gpu, device="A GPU")
    change(tree.base / "evaluations/digits/resnet18/standard/seed0/dramoe.json", seconds=900, hardware=gpu)
    summary = found(summarise)
    assert summary["gpu_hours"] == pytest.approx(0.75)
    assert ("A GPU", 2) in summary["hardware"] and ("A <fast> CPU & more, 2 cores", 1) in summary["hardware"]
    assert dict(summary["versions"])["torch"] == [("2.13.0", 6)]


PGD_AT = "digits/resnet18/pgd-at/seed0"


@pytest.mark.parametrize(
    ("break_it", "kind", "what", "target"),
    [
        (
            lambda tree: (tree.base / f"evaluations/{PGD_AT}/epsilon.parquet").unlink(),
            "not evaluated",
            "epsilon",
            f"evaluations/{PGD_AT}/epsilon.parquet",
        ),
        (lambda tree: (tree.base / f"checks/{PGD_AT}.json").unlink(), "not checked", "", f"checks/{PGD_AT}.json"),
        (
            lambda tree: tree.checks(PGD_AT, ("threat-model", "monotone-epsilon")),
            "check failed",
            "threat-model, monotone-epsilon",
            f"checks/{PGD_AT}.json",
        ),
        (
            lambda tree: change(tree.base / f"evaluations/{PGD_AT}/dramoe.json", sources={"attacks": "1" * 16}),
            "stale",
            "evaluation dramoe: attacks changed since",
            f"evaluations/{PGD_AT}/dramoe.parquet",
        ),
    ],
)
def test_a_problem_is_named_with_the_command_that_mends_it(tree, found, break_it, kind, what, target):
    tree.everything()
    assert found(problems.find) == []
    break_it(tree)
    refresh = " refresh=stale" if kind == "stale" else ""
    command = f"snakemake --cores all results/smoke/{target} --config scale=smoke{refresh}"
    expected = {"run": PGD_AT, "kind": kind, "what": what, "command": command}
    assert found(problems.find) == [expected]


def test_what_was_measured_on_a_stale_run_is_stale(tree, found):
    tree.everything()
    make_stale(tree.base / f"runs/{PGD_AT}/run.json")
    make_stale(tree.base / f"checks/{PGD_AT}.json")
    assert [(problem["run"], problem["kind"], problem["what"]) for problem in found(problems.find)] == [
        (PGD_AT, "stale", "training: nets changed since"),
        (PGD_AT, "stale", "evaluation dramoe: its run is stale"),
        (PGD_AT, "stale", "evaluation epsilon: its run is stale"),
        (PGD_AT, "stale", "checks: nets changed since, its run is stale"),
    ]
    listed = [*found(records.runs), *found(records.evaluations), *found(records.checks)[1]]
    assert [record["stale"] for record in listed if record["name"] == PGD_AT] == [
        ["nets"],
        ["its run"],
        ["its run"],
        ["nets", "its run"],
    ]
    assert not any(record["stale"] for record in listed if record["name"] != PGD_AT)


def test_a_run_that_is_not_there_is_said_once(tree, found):
    tree.everything(methods=["standard", "trades"])
    wrong = found(problems.find)
    assert [(problem["run"], problem["kind"]) for problem in wrong] == [(PGD_AT, "not trained")]
    assert problems.count(wrong) == {"not trained": 1}


def test_an_evaluation_without_its_model_is_no_missing_run(tree, found):
    """Weights and records may have been thrown away; the rows still speak."""
    tree.everything(methods=["standard", "trades"])
    tree.evaluation(PGD_AT, "dramoe", rows("dramoe", {}, 10, seed=0))
    kinds = [(problem["kind"], problem["what"]) for problem in found(problems.find)]
    assert kinds == [("not evaluated", "epsilon"), ("not checked", "")]


def image(size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, 2 * size, 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "kind"), [(20, "image/png"), (150, "image/webp")])
def test_a_picture_is_embedded_pixel_for_pixel(tmp_path, size, kind):
    original = image(size)
    original.save(tmp_path / "figure.png")
    picture = pictures.read(tmp_path / "figure.png")
    head, content = picture.address.split(";base64,")
    assert head == f"data:{kind}" and (picture.width, picture.height) == (2 * size, size)
    with Image.open(io.BytesIO(base64.b64decode(content))) as embedded:
        assert np.array_equal(np.asarray(embedded.convert("RGB")), np.asarray(original))


@pytest.mark.parametrize(("inches", "shown"), [(3.5, 437), (7.16, 894)])
def test_figures_of_any_width_are_shown_at_one_size_of_letters(inches, shown):
    """A narrow figure is not blown up to the width of the page."""
    assert pictures.Picture("data:", round(300 * inches), 300).shown == (shown, 125)


def test_what_the_scale_leaves_out_comes_last_and_is_one_group(tree, found, moat):
    tree.everything(methods=["standard"])
    missing = found(records.not_run)
    groups = [each["about_scale"] for each in missing]
    assert groups == sorted(groups) and groups.count(False) == 2 and groups.count(True) > 2
    assert moat("report") == 0
    page = (tree.base / "report.html").read_text()
    left_out = sum(each["count"] for each in missing if each["about_scale"])
    assert f"<b>{left_out}</b> × not part of scale smoke: {groups.count(True)} reasons" in page


def test_evidence_is_not_said_to_lack_tables_and_figures(tree, found):
    """Nothing records what they were made of."""
    tree.everything()
    names = [rule["name"] for rule in found(summarise)["rules"]]
    assert names == ["prepare", "train", "evaluate", "verify", "tabulate", "draw"]
    tree.root = tree.root.rename(tree.root.with_name("evidence"))
    assert [rule["name"] for rule in found(summarise)["rules"]] == ["train", "evaluate", "verify"]


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "figure.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"figure\.png: not a readable PNG .*`moat draw` makes it"):
        pictures.read(tmp_path / "figure.png")


@pytest.mark.parametrize(("size", "address"), [(10, "data:text/csv"), (300_000, "figures/figure.csv")])
def test_a_large_table_is_linked_and_not_carried(tmp_path, size, address):
    (tmp_path / "figure.csv").write_text("a" * size)
    assert pictures.table(tmp_path / "figure.csv", "figures/figure.csv").startswith(address)
