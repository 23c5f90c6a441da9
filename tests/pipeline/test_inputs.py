"""What the rules ask for, without Snakemake: inputs, options, digests."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from moat.base.errors import ConfigError
from moat.base.files import write_json
from moat.config.project import Project
from moat.config.shown import of_table
from moat.pipeline.inputs import Inputs, inputs_of, one_of
from project_copy import copy_project, edit_yaml

ROOT = Path(__file__).parents[2]
CONFIG = {"scale": "smoke", "studies": ["unified", "dramoe", "dwf"], "refresh": "never"}
CONFIG["max_resources"] = {"mem_mb": None, "runtime": None}
RESULTS = "results/smoke"
ALL = ["unified", "dramoe", "dwf", "mocse", "hybrid", "field"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    """In a folder without results, whatever lies in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield Inputs(Project(ROOT), CONFIG)


@pytest.fixture
def own(tmp_path) -> Project:
    """A project to be changed."""
    copy_project(tmp_path)
    return Project(tmp_path)


def wildcards(scale="smoke", dataset="digits", arch="resnet18", method="trades", seed="0", **more):
    return SimpleNamespace(scale=scale, dataset=dataset, arch=arch, method=method, seed=seed, **more)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"scale": "quickstat"}, "unknown scale 'quickstat'"), ({"studies": ["dwf", "dwg"]}, "unknown study 'dwg'")],
)
def test_a_wrong_name_is_told_before_any_rule_asks(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Inputs(Project(ROOT), {**CONFIG, **wrong})


@pytest.mark.parametrize(
    ("function", "asked", "expected"),
    [
        ("initial_models", {"method": "trades"}, []),
        (
            "initial_models",
            {"method": "dwf", "seed": "1"},
            [
                f"{RESULTS}/runs/digits/resnet18/dwf-expert-{name}/seed{seed}/run.json"
                for name, seed in (("benign", 3), ("fgsm", 4), ("pgd", 5))
            ],
        ),
        ("initialize_options", {"method": "trades"}, ""),
        ("evaluation_options", {"suite": "trust"}, "--batch-size 500 --limit 16"),
        ("evaluation_options", {"suite": "trust", "weights": ""}, "--batch-size 500 --limit 16"),
        ("evaluation_options", {"suite": "trust", "weights": "-last"}, "--batch-size 500 --limit 16 --weights last"),
        ("check_options", {"weights": "-last"}, "--batch-size 500 --limit 16 --steps 2 --queries 10 --weights last"),
        ("evaluation_options", {"scale": "paper", "suite": "trust"}, "--batch-size 500 --limit all"),
        ("check_options", {}, "--batch-size 500 --limit 16 --steps 2 --queries 10"),
        ("check_options", {"scale": "paper"}, "--batch-size 500 --limit 1000 --steps 20 --queries 1000"),
        ("probe_options", {"probe": "weights"}, "--batch-size 500 --limit 16"),
        ("corrupted_images", {"suite": "corruptions"}, []),
        (
            "corrupted_images",
            {"scale": "paper", "dataset": "cifar10", "suite": "corruptions"},
            ["results/paper/data/cifar10-c.safetensors"],
        ),
        ("corrupted_images", {"scale": "paper", "dataset": "cifar10", "suite": "quick"}, []),
        ("transfer_files", {"suite": "quick"}, []),
        ("transfer_files", {"suite": "trust", "method": "pgd-at"}, []),
        (
            "transfer_files",
            {"suite": "transfer", "method": "pgd-at"},
            [f"{RESULTS}/runs/digits/resnet18/trades/seed0/run.json"],
        ),
        (
            "transfer_options",
            {"suite": "transfer", "method": "pgd-at"},
            f"--transfer-from seed={RESULTS}/runs/digits/resnet18/trades/seed0",
        ),
    ],
)
def test_what_a_rule_asks_for(inputs, function, asked, expected):
    found = getattr(inputs, function)(wildcards(**asked))
    if function.endswith("options"):
        found = shlex.join(found)
    assert (list(map(str, found)) if isinstance(found, list) else found) == expected


@pytest.mark.parametrize(
    ("there", "asked", "lost"),
    [
        ([], {}, []),
        (["run.json", "model.safetensors", "last.safetensors"], {}, []),
        (["run.json", "last.safetensors"], {}, ["model.safetensors"]),
        (["run.json", "model.safetensors"], {"weights": "-last"}, ["last.safetensors"]),
    ],
    ids=["nothing made yet", "all there", "weights lost", "weights of the last epoch lost"],
)
def test_weights_are_an_input_only_where_they_were_lost(tmp_path, monkeypatch, there, asked, lost):
    """So that the list is the same before and after a training, whatever else would make results again."""
    monkeypatch.chdir(tmp_path)
    run = Path(RESULTS, "runs/digits/resnet18/trades/seed0")
    run.mkdir(parents=True)
    for name in there:
        (run / name).touch()
    inputs = Inputs(Project(ROOT), CONFIG)
    assert inputs.run_files(wildcards(**asked)) == {
        "run": run / "run.json",
        **({"weights": [run / name for name in lost]} if lost else {}),
    }
    files = ["run.json"] if asked else ["run.json", *lost]
    assert inputs.transfer_files(wildcards(suite="transfer", method="pgd-at")) == [run / name for name in files]


def test_only_transferred_examples_depend_on_another_run(inputs):
    """Where a method is trained again, its evaluations are made again, and of the others' only the transferred ones."""
    scale, trained_again = "smoke", f"{RESULTS}/runs/digits/resnet18/trades/seed0/run.json"
    dragged_along = set()
    for evaluation in inputs.grid(scale).evaluations:
        asked = wildcards(suite=evaluation.suite, **vars(evaluation.run))
        found = inputs.run_files(asked)
        files = [
            found["run"],
            *found.get("weights", []),
            *inputs.corrupted_images(asked),
            *inputs.transfer_files(asked),
        ]
        if trained_again in map(str, files) and evaluation.run.method != "trades":
            dragged_along.add(evaluation.suite)
    assert dragged_along == {"transfer"}
    assert inputs.suites(transfer=True) == ["transfer"]
    assert sorted([*inputs.suites(transfer=False), "transfer"]) == sorted(inputs.project.suites())


def test_a_row_of_the_last_epoch_asks_for_files_of_its_own_and_no_further_training(inputs):
    table = inputs.grid("smoke").table("dwf", "table2")
    asked = [str(path) for path in inputs_of(of_table("smoke", table), "smoke")]
    (last,) = {run for run in table.checks if run.weights == "last"}
    own = [path for path in asked if "-last" in path]
    name = f"{last.dataset}/{last.arch}/{last.method}/seed{last.seed}-last"
    rows = f"{RESULTS}/evaluations/{name}/dwf-last-epoch"
    assert own == [f"{rows}.parquet", f"{rows}.json", f"{RESULTS}/checks/{name}.json"]
    assert len(asked) == len(set(asked))


def test_a_table_asks_for_the_records_evaluations_and_checks_behind_its_cells(inputs):
    table = inputs.grid("smoke").table("unified", "leaderboard")
    expected = set()
    for run in table.runs:
        name = f"{run.dataset}/{run.arch}/{run.method}/seed{run.seed}"
        expected |= {f"{RESULTS}/runs/{name}/run.json", f"{RESULTS}/runs/{name}/history.csv"}
        expected |= {f"{RESULTS}/checks/{name}.json"}
        expected |= {
            f"{RESULTS}/evaluations/{name}/{each.suite}.{end}"
            for each in table.evaluations
            if each.run == run
            for end in ("parquet", "json")
        }
    assert len(table.runs) > 10
    read = inputs.shown_inputs("table")(wildcards(study="unified", item="leaderboard"))
    assert set(map(str, read)) == expected


def test_a_figure_asks_for_what_was_taken_from_models_or_for_all_cells(inputs):
    whole = Inputs(Project(ROOT), {**CONFIG, "studies": ALL})
    figures, read = whole.grid("smoke").figures, whole.shown_inputs("figure")
    probed = next(figure for figure in figures if figure.probes)
    asked = read(wildcards(study=probed.study, item=probed.name))
    assert {f"{RESULTS}/probes/" in str(path) for path in asked} == {True, False}
    of_cells = next(figure for figure in figures if figure.shows == "cells")
    asked = read(wildcards(study=of_cells.study, item=of_cells.name))
    assert asked[-1] == Path(f"{RESULTS}/tables/cells.csv")


@pytest.mark.brief(keep=lambda case: len(case["studies"]) < 3)
@pytest.mark.parametrize(
    ("studies", "names"),
    [
        (ALL, ["cells.csv", "metrics.json", "report.html"]),
        (ALL[::-1], ["cells.csv", "metrics.json", "report.html"]),
        (["dwf"], ["cells-dwf.csv", "metrics-dwf.json", "report-dwf.html"]),
        (["unified", "dwf"], ["cells-dwf+unified.csv", "metrics-dwf+unified.json", "report-dwf+unified.html"]),
    ],
    ids=["all", "all in another order", "one", "two"],
)
def test_some_studies_have_files_of_their_own(studies, names):
    some = Inputs(Project(ROOT), {**CONFIG, "studies": studies})
    made = {path.name for kind in ("cells", "page") for path in some.shown(kind, wildcards()).files}
    assert set(names) <= made
    # The figure of all cells is one of all studies.
    drawn = {figure.shows for figure in some.grid("smoke").figures}
    assert ("cells" in drawn) == (len(studies) == len(ALL))


def test_all_that_is_promised_is_asked_for(inputs):
    asked = list(map(str, inputs.everything("smoke")))
    grid = inputs.grid("smoke")
    assert len(asked) == len(set(asked))
    for run in grid.runs:
        folder = f"{RESULTS}/runs/{run.dataset}/{run.arch}/{run.method}/seed{run.seed}"
        files = ("run.json", "history.csv", "model.safetensors", "last.safetensors")
        assert {f"{folder}/{name}" for name in files} <= set(asked)
    for kind, many in (("evaluations", 2 * len(grid.evaluations)), ("checks", len(grid.checks))):
        assert sum(path.startswith(f"{RESULTS}/{kind}/") for path in asked) == many
    for table in grid.tables:
        base = f"{RESULTS}/tables/{table.study}-{table.name}"
        assert {f"{base}.{end}" for end in ("csv", "md", "tex", "json")} <= set(asked)


def test_all_of_a_scale_is_listed_once(inputs):
    grid = inputs.grid("smoke")
    runs = [*inputs.all_runs("smoke", "expert"), *inputs.all_runs("smoke", "method")]
    assert len(runs) == len(set(runs)) == 4 * len(grid.runs)
    assert {path.parts[4] for path in inputs.all_runs("smoke", "expert")} == {"resnet18"}
    evaluated = inputs.all_evaluated("smoke")
    assert len(evaluated) == len(set(evaluated))
    assert len(evaluated) == 2 * len(grid.evaluations) + len(grid.checks) + 2 * len(grid.probes)
    assert [str(path) for path in inputs.all_prepared("smoke")] == [f"{RESULTS}/data/digits.safetensors"]


@pytest.mark.parametrize(
    ("file", "change", "changed"),
    [
        ("config/methods/trades.yaml", lambda content: content["loss"].update(beta=1.0), {"run"}),
        ("config/methods/trades.yaml", lambda content: content.update(title="T"), set()),
        ("config/methods/pgd-at.yaml", lambda content: content.update(batch_size=7), set()),
        ("config/suites.yaml", lambda content: content["quick"]["settings"].append("cw_inf"), {"evaluation"}),
        ("config/probes.yaml", lambda content: content["weights"].update(layer=1), {"probe"}),
        ("config/scales/smoke.yaml", lambda content: content["checks"].update(steps=1), {"checks"}),
        ("config/scales/smoke.yaml", lambda content: content["model"].update(width=1), {"run"}),
        ("config/scales/mini.yaml", lambda content: content["model"].update(width=1), set()),
        ("config/datasets/digits.yaml", lambda content: content.update(mean=[0.5, 0.5, 0.5]), {"data"}),
        ("config/studies/dwf.yaml", lambda content: content.update(title="T"), set()),
        ("config/studies/dramoe.yaml", lambda content: content.update(title="T"), set()),
    ],
)  # fmt: skip
def test_a_digest_changes_with_what_decides_its_result(own, file, change, changed):
    def digests():
        inputs = Inputs(own, CONFIG)
        asked = wildcards(suite="quick", probe="weights", study="dwf")
        names = ("run", "data", "evaluation", "checks", "probe")
        return {name: getattr(inputs, f"{name}_digest")(asked) for name in names}

    before = digests()
    edit_yaml(own.root / file, change)
    after = digests()
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize(
    ("scale", "dataset", "asked"),
    [
        # Twice the arrays: 950,000 and 60,000 images of 32x32, 110,000 of 64x64 and the archive that holds them.
        ("paper", "cifar10-c", 500 + 2 * 950_000 * 3072 // 10**6),
        ("paper", "cifar10", 2000),
        ("paper", "tiny-imagenet", 500 + (2 * 110_000 * 12_288 + 248_100_043) // 10**6),
        ("smoke", "digits", 2000),
    ],
)
def test_preparing_asks_for_memory_by_the_size_of_the_data(scale, dataset, asked):
    for most in (None, 3000):
        inputs = Inputs(Project(ROOT), {**CONFIG, "max_resources": {"mem_mb": most, "runtime": None}})
        assert inputs.prepare_memory(wildcards(scale, dataset), 1) == min(asked, most or 10**9)


@pytest.mark.brief(
    keep=lambda case: (
        (case["content"], case["refresh"])
        in (("cut", "never"), (None, "stale"), ({"sources": {"nets": "1" * 32}}, "stale"))
    )
)
@pytest.mark.parametrize(
    ("content", "refresh", "why"),
    [
        (None, "stale", None),
        ({"sources": {}}, "stale", None),
        ({"sources": {"nets": "1" * 32}}, "never", None),
        ({"sources": {"nets": "1" * 32}}, "stale", "nets changed since"),
        ({"recipe_digest": "0" * 16}, "never", "check budget changed since"),
        ({"recipe_digest": "0" * 16}, "stale", "check budget changed since"),
        ("cut", "never", "it was cut short"),
    ],
)
def test_what_was_cut_short_is_made_again_and_what_is_stale_when_asked_for(own, content, refresh, why):
    inputs = Inputs(own, {**CONFIG, "refresh": refresh}, own.root / "results")
    path = own.root / f"{RESULTS}/checks/digits/resnet18/trades/seed0.json"
    if content is not None:
        write_json(path, content if isinstance(content, dict) else {})
    if content == "cut":
        path.write_text("{\n")
    assert inputs.why_again("check", wildcards()) == why


@pytest.mark.parametrize(
    ("kind", "asked", "first"),
    [
        ("run", {}, True),
        ("run", {"method": "fgsm-at"}, False),
        ("check", {"weights": ""}, True),
        ("check", {"method": "fgsm-at", "weights": ""}, False),
        ("evaluation", {"suite": "trust", "weights": ""}, True),
        ("evaluation", {"suite": "transfer", "weights": ""}, True),
        ("evaluation", {"suite": "epsilon", "weights": ""}, False),
        ("evaluation", {"suite": "trust", "weights": "-last"}, False),
    ],
)
def test_what_the_first_table_shows_comes_first(inputs, kind, asked, first):
    priority = inputs.priority(kind, 2)(wildcards(**asked))
    assert (priority > 2) == first
    # Before the trainings of other tables, after what more depends on: data, experts, tables that can be made.
    assert not first or inputs.priority("run", 5)(wildcards(method="fgsm-at")) < priority < 12


def test_a_constraint_matches_whole_names_and_no_others():
    pattern = re.compile(f"^({one_of(['pgd-at', 'pgd-at-moe', 'x.y'])})$")
    assert [bool(pattern.match(name)) for name in ("pgd-at", "pgd-at-moe", "x.y", "xzy", "pgd")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert not re.match(one_of([]), "")
