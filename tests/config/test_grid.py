"""The study grid: rows x columns become runs and measurements, each once."""

import shutil
from pathlib import Path

import pytest
import yaml

import moat.methods
from moat import models
from moat.base import plugins
from moat.base.errors import ConfigError
from moat.base.files import write_json
from moat.config import paths
from moat.config.grid import Run, build_grid, initial_runs
from moat.config.project import Project
from moat.planning.status import plan
from moat.provenance.staleness import hash_parts
from project_copy import copy_project

ROOT = Path(__file__).parents[2]


def axis(name, *points):
    return {"axis": name, "points": list(points)}


def study(**tables):
    return {"title": "t", "description": "d", "tolerance": 2.0, "seeds": [0, 1, 2], "tables": tables}


def table(rows, columns, **more):
    return {"title": "t", "caption": "c", "suite": "dramoe", "rows": rows, "columns": columns, **more}


DATA = axis("dataset", {"label": "CIFAR-10", "dataset": "cifar10"})
NET = axis("arch", {"label": "ResNet-18", "arch": "resnet18"})
METHODS = axis("method", {"label": "TRADES", "method": "trades"}, {"label": "PGD-AT", "method": "pgd-at"})
METRICS = axis("metric", {"label": "Std", "settings": ["clean"]}, {"label": "Adv", "settings": ["pgd10"]})


@pytest.fixture
def project(tmp_path):
    copy_project(tmp_path)
    shutil.rmtree(tmp_path / "config" / "studies")
    (tmp_path / "config" / "studies").mkdir()
    return Project(tmp_path)


def declare(project, name, content):
    (project.root / "config" / "studies" / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_cells_are_the_product_of_rows_and_columns(project):
    declare(project, "dramoe", study(table2=table([NET, METHODS], [DATA, METRICS], published={"table": "2"})))
    (made,) = build_grid(project, "paper", ["dramoe"]).tables
    assert made.rows == ("ResNet-18 / TRADES", "ResNet-18 / PGD-AT")
    assert made.columns == ("CIFAR-10 / Std", "CIFAR-10 / Adv")
    # Published values: DRAMoE, Table 2.
    assert [cell.published for cell in made.cells] == [81.82, 52.48, 83.10, 52.05]
    assert [cell.metric for cell in made.cells] == ["accuracy(clean)", "accuracy(pgd10)"] * 2


def test_runs_and_evaluations_are_listed_once_across_tables_and_studies(project):
    declare(project, "a", study(one=table([DATA, NET, METHODS], [METRICS]), two=table([DATA, NET, METHODS], [METRICS])))
    declare(project, "b", study(three=table([DATA, NET, METHODS], [METRICS])))
    grid = build_grid(project, "paper", ["a", "b"])
    assert len(grid.tables) == 3
    assert len(grid.runs) == len(set(grid.runs)) == 2 * 3
    assert len(grid.evaluations) == 6
    assert len(grid.checks) == 6


@pytest.mark.parametrize(("scale", "seeds"), [("smoke", 1), ("mini", 1), ("paper", 3)])
def test_a_scale_caps_the_seeds_of_a_study(project, scale, seeds):
    declare(project, "a", study(one=table([DATA, NET, METHODS], [METRICS])))
    assert {run.seed for run in build_grid(project, scale, ["a"]).runs} == set(range(seeds))


def test_a_scale_substitutes_data_and_says_so(project):
    declare(project, "a", study(one=table([DATA, NET, METHODS], [METRICS])))
    grid = build_grid(project, "smoke", ["a"])
    assert {run.dataset for run in grid.runs} == {"digits"}
    for cell in grid.tables[0].cells:
        assert cell.substitutes == (("dataset", "cifar10"),)
        assert cell.row.startswith("digits (for CIFAR-10) / ResNet-18")


@pytest.mark.parametrize(
    ("label", "shown"),
    [("CIFAR-10 / Balanced", "digits (for CIFAR-10) / Balanced"), ("Balanced", "Balanced (digits)")],
)
def test_the_label_of_a_method_on_a_data_set_is_not_taken_for_the_data_sets(project, label, shown):
    both = axis("row", {"label": label, "dataset": "cifar10", "method": "trades"})
    declare(project, "a", study(one=table([both, NET], [METRICS])))
    (table_,) = build_grid(project, "smoke", ["a"]).tables
    assert {cell.row for cell in table_.cells} == {f"{shown} / ResNet-18"}


def test_what_a_scale_leaves_out_is_not_run_and_says_why(project):
    wide = axis("arch", {"label": "WRN-28-10", "arch": "wrn-28-10"})
    declare(project, "a", study(one=table([DATA, wide, METHODS], [METRICS])))
    grid = build_grid(project, "smoke", ["a"])
    assert grid.runs == ()
    assert {cell.not_run for cell in grid.tables[0].cells} == {"the arch wrn-28-10 is not part of scale smoke"}


def extended(project, **content):
    """A scale that extends smoke."""
    content = {"title": "mine", "description": "d", "extends": "smoke", **content}
    (project.root / "config/scales/mine.yaml").write_text(yaml.safe_dump(content))
    return build_grid(project, "mine", ["a"])


SIZE = axis("metric", {"label": "Std", "settings": ["clean"]}, {"label": "MACs", "measure": "macs"})


@pytest.mark.parametrize(
    ("scale", "rows", "columns", "said"),
    [
        ({}, 2, 3, ""),
        ({"exclude": {"method": ["trades"]}}, 2, 3, ""),
        ({"exclude": {"method": ["trades"]}, "show_not_run": False}, 1, 3, "left out: 1 of 2 rows."),
        ({"exclude": {"suite": ["quick"]}, "show_not_run": False}, 2, 2, "left out: 1 of 3 columns."),
    ],
    ids=["all", "a method not run", "its row left out", "a suite's column left out"],
)
def test_what_a_scale_does_not_have_is_shown_or_left_out_and_counted(project, scale, rows, columns, said):
    quick = {"label": "quick", "suite": "quick", "settings": ["fgsm"]}
    columns_ = axis("metric", *SIZE["points"], quick)
    lines = {"kind": "training_curves", "title": "t", "caption": "c", "suite": "dramoe", "lines": [DATA, NET, METHODS]}
    declare(project, "a", {**study(one=table([DATA, NET, METHODS], [columns_])), "figures": {"curves": lines}})
    grid = extended(project, **scale)
    (made,), (figure,) = grid.tables, grid.figures
    assert (len(made.rows), len(made.columns), len(figure.lines)) == (rows, columns, rows)
    assert said in made.caption and ("left out" in made.caption) == bool(said)
    assert ("left out: 1 of 2 lines." in figure.caption) == (rows == 1)
    if not said and scale:
        assert "the method trades is not part of scale mine" in {cell.not_run for cell in made.cells}


def test_a_suite_that_a_scale_leaves_out_costs_only_the_cells_that_need_it(project):
    declare(project, "a", study(one=table([DATA, NET, METHODS], [SIZE])))
    (made,) = extended(project, exclude={"suite": ["dramoe"]}).tables
    assert [cell.not_run for cell in made.cells] == ["the suite dramoe is not part of scale mine", None] * 2


def test_a_column_that_a_scale_leaves_out_is_not_run_in_that_table_only(project):
    same = table([DATA, NET, METHODS], [METRICS])
    declare(project, "a", study(one=same, two=same))
    one, two = extended(project, exclude={"column": ["a-one: Adv"]}).tables
    assert [cell.not_run for cell in one.cells] == [None, "the column a-one: Adv is not part of scale mine"] * 2
    assert {cell.not_run for cell in two.cells} == {None}


@pytest.mark.parametrize(
    ("scale", "made"),
    [
        ({"exclude": {"item": ["a-t*"]}}, ["one"]),
        # A table that would have no row is none.
        ({"exclude": {"method": ["trades", "pgd-at"]}, "show_not_run": False}, []),
    ],
    ids=["by name", "without rows"],
)
def test_tables_that_a_scale_does_not_make(project, scale, made):
    declare(project, "a", study(**{name: table([DATA, NET, METHODS], [METRICS]) for name in ("one", "two", "three")}))
    assert [each.name for each in extended(project, **scale).tables] == made


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([DATA, NET, axis("method", {"label": "x", "method": "trade"})], [METRICS], "unknown method 'trade'.*'trades'"),
        ([DATA, axis("arch", {"label": "x", "arch": "resnet"}), METHODS], [METRICS], "unknown arch 'resnet'.*resnet18"),
        ([axis("dataset", {"label": "x", "dataset": "cifar"}), NET, METHODS], [METRICS], "unknown dataset 'cifar'"),
        ([DATA, NET, METHODS], [axis("m", {"label": "x", "settings": ["pgd11"]})], "unknown setting of suite 'dramoe'"),
        ([DATA, METHODS], [METRICS], "one: TRADES.*no arch given|one: CIFAR-10 / TRADES.*no arch given"),
    ],
)
def test_an_unknown_name_in_a_study_is_named_with_its_place(project, rows, columns, said):
    declare(project, "a", study(one=table(rows, columns)))
    with pytest.raises(ConfigError, match=f"config/studies/a.yaml: one:.*({said})|{said}") as error:
        build_grid(project, "paper", ["a"])
    assert "config/studies/a.yaml" in str(error.value)


def test_a_published_number_that_fits_twice_is_refused(project):
    rows = [axis("method", {"label": "TRADES", "method": "trades", "arch": "resnet18", "dataset": "cifar10"})]
    declare(project, "dramoe", study(table2=table(rows, [METRICS], published={"table": "2"})))
    with pytest.raises(ConfigError, match=r"published/dramoe.csv: 6 rows fit table2: TRADES x Std.*published: key"):
        build_grid(project, "paper", ["dramoe"])


def test_a_cell_without_its_published_number_is_refused_unless_it_says_so(project):
    """A label is how the number is found: a slip in it must not make the number vanish."""
    typo = axis("arch", {"label": "ResNet18", "arch": "resnet18"})
    declare(project, "dramoe", study(table2=table([typo, METHODS], [DATA, METRICS], published={"table": "2"})))
    with pytest.raises(ConfigError, match="dramoe.csv: no row fits table2: ResNet18 / TRADES x CIFAR-10 / Std"):
        build_grid(project, "paper", ["dramoe"])
    said = axis("arch", {"label": "ResNet18", "arch": "resnet18", "not_in_paper": True})
    declare(project, "dramoe", study(table2=table([said, METHODS], [DATA, METRICS], published={"table": "2"})))
    (made,) = build_grid(project, "paper", ["dramoe"]).tables
    assert {cell.published for cell in made.cells} == {None}


def recipe_of(project, name, **keys):
    """A recipe of a class that starts from finished runs."""
    recipe = {**yaml.safe_load((ROOT / "config/methods/sramoe.yaml").read_text()), "class": "sramoe", **keys}
    (project.root / "config" / "methods" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def starting_from(project, name, *methods, role="method"):
    runs = [{"name": f"n{i}", "method": method} for i, method in enumerate(methods)]
    recipe_of(project, name, role=role, initialize_from=runs)


def test_what_a_run_starts_from_comes_before_it(project):
    starting_from(project, "first", role="expert")
    starting_from(project, "second", "first", "standard")
    only = axis("method", {"label": "x", "method": "second"})
    declare(project, "a", study(one=table([DATA, NET, only], [METRICS])))
    grid = build_grid(project, "paper", ["a"])
    assert [run.method for run in grid.runs] == ["first", "standard", "second"] * 3
    # Only what is shown is evaluated.
    assert [evaluation.run.method for evaluation in grid.evaluations] == ["second"] * 3
    assert grid.initialize_from[Run("cifar10", "resnet18", "second", 0)]["n0"].method == "first"


ONE = {"name": "a", "method": "standard"}
REPLICAS = [{"name": f"r{k}", "method": "standard", "replica": k, "replicas": 4} for k in range(4)]


@pytest.mark.parametrize(
    ("recipe", "seed", "seeds"),
    [
        ({"initialize_from": [ONE]}, 2, {"a": 2}),
        ({"initialize_from": [{**ONE, "seed": 7}]}, 2, {"a": 7}),
        ({"initialize_from": REPLICAS}, 0, {"r0": 0, "r1": 1, "r2": 2, "r3": 3}),
        ({"initialize_from": REPLICAS}, 2, {"r0": 8, "r1": 9, "r2": 10, "r3": 11}),
        ({"initialize_from": REPLICAS, "reuse_experts": True}, 2, {"r0": 0, "r1": 1, "r2": 2, "r3": 3}),
        ({"initialize_from": [ONE], "reuse_experts": True}, 2, {"a": 0}),
    ],
)
def test_the_seeds_of_what_a_run_starts_from(project, recipe, seed, seeds):
    recipe_of(project, "second", **recipe)
    starts = initial_runs(project, "paper", Run("cifar10", "resnet18", "second", seed))
    assert {name: run.seed for name, run in starts.items()} == seeds


def test_a_scale_may_start_a_run_from_fewer(project):
    starting_from(project, "second", "standard", "trades")
    scale = project.root / "config" / "scales" / "mini.yaml"
    fewer = {"recipes": {"second": {"initialize_from": [{"name": "n0", "method": "standard"}]}}}
    scale.write_text(yaml.safe_dump({**yaml.safe_load(scale.read_text()), **fewer}))
    run = Run("cifar10", "resnet18", "second", 0)
    assert len(initial_runs(project, "paper", run)) == 2
    assert len(initial_runs(project, "mini", run)) == 1


def test_a_run_that_would_start_from_itself_is_refused(project):
    starting_from(project, "first", "second")
    starting_from(project, "second", "first")
    only = axis("method", {"label": "x", "method": "second"})
    declare(project, "a", study(one=table([DATA, NET, only], [METRICS])))
    with pytest.raises(ConfigError, match="initialize_from: the run would start from itself"):
        build_grid(project, "paper", ["a"])


@pytest.mark.brief(keep=lambda case: case["scale"] == "paper")
@pytest.mark.parametrize("scale", Project(ROOT).names("scales"))
def test_the_projects_own_studies_expand_at_every_scale(scale):
    project = Project(ROOT)
    grid = build_grid(project, scale, project.names("studies"))
    assert grid.runs and grid.tables and grid.figures
    images = project.scale(scale)["evaluation"]["limit"]
    for cell in (cell for table in grid.tables for cell in table.cells):
        for one in (cell, *cell.alternatives):
            if one.suite:
                settings = project.attack_settings(one.suite, scale)
                limits = {name: settings.get(name, {}).get("limit", images) for name in one.settings}
                # What is compared image by image needs the same ones.
                assert len(set(limits.values())) < 2, f"{one}: {limits}"


def test_plug_in_names_read_from_the_sources_are_those_that_import():
    assert list(plugins.archs()) == models.names()
    project = Project(ROOT)
    assert {project.method(name)["class"] for name in project.names("methods")} == set(moat.methods.names())
    for kind in plugins.figure_kinds():
        __import__(f"moat.reporting.figures.{kind}")


# The smallest files that were not cut short.
WHOLE = {".json": b"{ }\n", ".safetensors": b"\2\0\0\0\0\0\0\0{}", ".parquet": b"PAR1 and so on PAR1"}


def test_plan_tells_done_missing_and_stale(project):
    declare(project, "a", study(one=table([DATA, NET, METHODS], [METRICS])))
    grid = build_grid(project, "smoke", ["a"])
    runs = project.root / "results/smoke/runs/digits/resnet18"
    made_of = {"method": "trades", "arch": "resnet18"}
    today = hash_parts(("nets", "method"), **made_of)
    for method, recorded in (("trades", today), ("pgd-at", {"nets": today["nets"], "attacks": "0" * 16})):
        folder = runs / method / "seed0"
        folder.mkdir(parents=True)
        record = {"class": method, "arch": "resnet18", "sources": recorded}
        write_json(folder / "run.json", record)
        _leave_weights(folder)
    found = {entry["method"]: entry for entry in plan(project, grid) if entry["kind"] == "run"}
    assert (found["trades"]["status"], found["trades"]["stale"]) == ("done", [])
    assert (found["pgd-at"]["status"], found["pgd-at"]["stale"]) == ("stale", ["attacks"])
    assert {e["status"] for e in plan(project, grid) if e["kind"] in ("evaluation", "check", "table")} == {"missing"}


def _leave_weights(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.csv").write_text("epoch\n1\n")
    for name in paths.WEIGHTS.values():
        (folder / name).write_bytes(WHOLE[".safetensors"])


# Files that are there (r: run.json, w: weights and history, e: evaluation, g: checks) -> status of run, evaluation and
# checks.
WITHOUT_WEIGHTS = {
    "rweg": ("done", "done", "done"),
    "reg": ("missing", "stale", "stale"),
    "rwg": ("done", "missing", "done"),
    "rg": ("missing", "missing", "stale"),
    "re": ("missing", "stale", "missing"),
    "eg": ("missing", "stale", "stale"),
}


@pytest.mark.parametrize(("there", "expected"), WITHOUT_WEIGHTS.items())
def test_a_run_without_its_weights_is_missing_and_what_was_made_from_it_stale(project, there, expected):
    """As the workflow has it, which makes both anew."""
    declare(
        project, "a", study(one=table([DATA, NET, axis("method", {"label": "TRADES", "method": "trades"})], [METRICS]))
    )
    grid = build_grid(project, "smoke", ["a"])
    (run,), (evaluation,) = grid.runs, grid.evaluations
    folder = project.root / paths.run_dir("smoke", run)
    files = {
        "r": folder / "run.json",
        "w": folder / "model.safetensors",
        "e": project.root / paths.evaluation("smoke", run, evaluation.suite),
        "g": project.root / paths.checks("smoke", run),
    }
    if "w" in there:
        _leave_weights(folder)
    if "e" in there:
        files["e"].parent.mkdir(parents=True, exist_ok=True)
        files["e"].with_suffix(".json").write_bytes(WHOLE[".json"])
    for letter in there:
        files[letter].parent.mkdir(parents=True, exist_ok=True)
        files[letter].write_bytes(WHOLE[files[letter].suffix])
    found = {entry["kind"]: entry["status"] for entry in plan(project, grid)}
    assert (found["run"], found["evaluation"], found["check"]) == expected


def test_what_a_bare_run_starts_from_is_trained_again_too(project):
    declare(project, "a", study(one=table([DATA, NET, axis("method", {"label": "DWF", "method": "dwf"})], [METRICS])))
    grid = build_grid(project, "smoke", ["a"])
    for run in grid.runs:
        folder = project.root / paths.run_dir("smoke", run)
        folder.mkdir(parents=True)
        (folder / "run.json").write_bytes(WHOLE[".json"])
    found = {entry["method"]: entry["status"] for entry in plan(project, grid) if entry["kind"] == "run"}
    assert len(found) > 1 and set(found.values()) == {"missing"}


def test_a_scale_that_includes_a_variant_has_what_is_the_same_run_there(project):
    """At mini every budget is the scale's: DWF, and DWF at the unified budget, are one run, and both are included."""
    points = [{"label": name, "method": name} for name in ("dwf", "dwf-unified", "dwf-frozen")]
    declare(project, "dramoe", study(t=table([NET, axis("method", *points)], [DATA, METRICS])))
    assert "dwf" not in project.scale("mini")["include"]["method"]
    (made,) = build_grid(project, "mini", ["dramoe"]).tables
    assert [run.method for run in made.runs] == ["dwf"]
    assert [cell.not_run is None for cell in made.cells] == [True] * 4 + [False] * 2
