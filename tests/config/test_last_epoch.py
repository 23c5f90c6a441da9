"""Rows of the weights of the last epoch: which tables have them at which scale, and what they ask for."""

from pathlib import Path

import pytest

from moat.base import plugins
from moat.base.errors import ConfigError
from moat.config import paths
from moat.config.grid import Run, build_grid
from moat.config.project import Project
from moat.config.transfer import transfer_runs
from moat.reporting import claims
from project_copy import copy_project, edit_yaml

ROOT = Path(__file__).parents[2]
PAPERS = ["dramoe", "dwf", "mocse", "hybrid"]
NOT_EVALUATED = "The weights of the last epoch were not evaluated at this scale."


@pytest.fixture(scope="module")
def paper():
    return build_grid(Project(ROOT), "paper", PAPERS)


def cell(grid, study, table, row, column):
    (found,) = [each for each in grid.table(study, table).cells if (each.row, each.column) == (row, column)]
    return found


@pytest.mark.parametrize(
    ("study", "table", "row", "column", "suite", "settings"),
    [
        ("dramoe", "table1", "ResNet-18 / DRAMoE", "CIFAR-10 / Adv", "last-epoch", ("pgd10", "pgd10_det")),
        ("dramoe", "table1", "ResNet-34 / PGD-AT (Sparse)", "TinyImageNet / Adv", "last-epoch", ("pgd10",)),
        ("dramoe", "table2", "WRN-28-10 / TRADES", "CIFAR-100 / Std", "last-epoch", ("clean",)),
        ("dramoe", "table3", "ResNet-18 / MoE", "CIFAR-10 / Adv", "last-epoch", ("pgd10", "pgd10_det")),
        ("dramoe", "table4", "ResNet-18 / DRAMoE(GSA)", "CIFAR-10 / Adv", "last-epoch", ("pgd10", "pgd10_det")),
        ("dwf", "table2", "CIFAR-10 / ResNet-18 FGSM-AT", "FGSM 0.03", "dwf-last-epoch", ("fgsm_e03",)),
        ("dwf", "table3", "CIFAR-10 / ResNet-18 FGSM-AT", "PGD-50", "dwf-last-epoch", ("pgd50",)),
        ("dwf", "table3", "SVHN / DWF", "PGD-10", "dwf-last-epoch", ("pgd10", "pgd10_det")),
        ("hybrid", "table1", "MNIST / LeNet-5 + Hybrid", "robustness_gap", "hybrid", ("clean", "cw_inf_e03")),
        ("mocse", "table1", "Natural Samples", "CIFAR-10 / AT MoCSE", "corruptions", ("clean",)),
    ],
)
def test_a_row_or_column_is_followed_by_its_last_epoch(paper, study, table, row, column, suite, settings):
    shown = paper.table(study, table)
    lines, place = (shown.columns, column) if study == "mocse" else (shown.rows, row)
    assert lines[lines.index(place) + 1] == f"{place} (last epoch)"
    at = (row, f"{column} (last epoch)") if study == "mocse" else (f"{row} (last epoch)", column)
    best, last = cell(paper, study, table, row, column), cell(paper, study, table, *at)
    assert (best.weights, last.weights) == ("best", "last")
    assert (last.dataset, last.arch, last.method, last.seeds) == (best.dataset, best.arch, best.method, best.seeds)
    assert (last.suite, last.settings, last.metric) == (suite, settings, f"last_epoch_{best.metric}")
    # The published number is compared once, with the best epoch.
    assert best.published is not None
    assert (last.published, last.alternatives) == (None, ())
    # One training leaves both; each has its own evaluations and checks.
    assert {run.training for run in last.runs} == set(best.runs) <= set(paper.runs)
    assert set(last.evaluations) <= set(paper.evaluations) and set(last.runs) <= set(paper.checks)
    assert "Last epoch: " in shown.caption and NOT_EVALUATED not in shown.caption


def test_attacks_that_the_last_epoch_is_not_evaluated_with_are_named(paper):
    last = cell(paper, "dwf", "table3", "CIFAR-10 / DWF (last epoch)", "PGD-100 MS")
    assert (last.not_run, last.runs) == ("the last epoch is not evaluated with pgd100_ms", ())


def test_only_trained_models_are_runs_and_undefended_nets_have_no_last_epoch(paper):
    assert {run.weights for run in paper.runs} == {"best"}
    last = {run for run in paper.checks if run.weights == "last"}
    assert last == {each.run for each in paper.evaluations if each.run.weights == "last"}
    assert not {run.method for run in last if run.method.startswith("standard")}


def test_every_table_of_a_paper_shows_the_last_epoch_of_what_is_trained_under_attack(paper):
    project, lacking = Project(ROOT), set()
    for table in paper.tables:
        shown = {"best": set(), "last": set()}
        for each in table.cells:
            recipe = project.method(each.method) if each.method else {"class": "standard"}
            if "rows" in each.reads and "attack_space" in plugins.recipe_parameters(
                recipe["class"], recipe.get("model", {})
            ):
                shown[each.weights].add((each.dataset, each.arch, each.method))
        if shown["best"] != shown["last"]:
            lacking.add((table.study, table.name))
    # AutoAttack costs more than all other attacks on the last epoch together.
    assert lacking == {("dramoe", "autoattack")}


def test_files_of_the_last_epoch():
    run = Run("cifar10", "resnet18", "fgsm-at", 3, "last")
    name = "cifar10/resnet18/fgsm-at/seed3"
    assert str(paths.evaluation("paper", run, "dwf")) == f"results/paper/evaluations/{name}-last/dwf.parquet"
    assert str(paths.checks("paper", run)) == f"results/paper/checks/{name}-last.json"
    assert str(paths.weights("paper", run)) == f"results/paper/runs/{name}/last.safetensors"
    assert paths.run_dir("paper", run) == paths.run_dir("paper", run.training)


def test_examples_are_transferred_from_best_weights_only(paper):
    run = Run("cifar10", "resnet18", "trades", 2)
    assert {other.weights for other in paper.checks} == {"best", "last"}
    found = transfer_runs(Project(ROOT), "transfer", run, paper.checks)
    assert found == {"seed": Run("cifar10", "resnet18", "trades", 0), "arch": Run("cifar10", "resnet34", "trades", 2)}


def test_a_claim_is_about_the_best_epoch(paper):
    spec = {"study": "dwf", "table": "table3", "of": {"attack": ["PGD-10"]}}
    found = claims.chosen(paper, "all-rows", spec, "of")
    assert {each.weights for each in found} == {"best"} and len(found) == 19


# -- at a scale ---------------------------------------------------------------


@pytest.fixture
def expand(tmp_path):
    """The grid of a study, in a copy of the project in which scale and study are changed."""
    copy_project(tmp_path)

    def grid(study, *, last_epoch=None, scale="smoke", by=lambda tables: None):
        config = tmp_path / "config"
        edit_yaml(config / f"scales/{scale}.yaml", lambda content: content.update(last_epoch=last_epoch))
        edit_yaml(config / f"studies/{study}.yaml", lambda content: by(content["tables"]))
        return build_grid(Project(tmp_path), scale, [study])

    return grid


def last_rows(grid, study, table):
    return [row for row in grid.table(study, table).rows if row.endswith("(last epoch)")]


def test_a_scale_that_does_not_ask_says_that_nothing_was_evaluated(expand):
    grid = expand("dwf", last_epoch=False)
    assert last_rows(grid, "dwf", "table3") == []
    assert grid.table("dwf", "table3").caption.endswith(NOT_EVALUATED)
    assert {each.run.weights for each in grid.evaluations} == {"best"}


def test_a_scale_can_ask_for_some_methods(expand):
    grid = expand("dwf", last_epoch=["fgsm-at"])
    assert last_rows(grid, "dwf", "table2") == ["digits (for CIFAR-10) / ResNet-18 FGSM-AT (last epoch)"]
    only = "At this scale they were evaluated for digits (for CIFAR-10) / ResNet-18 FGSM-AT only."
    assert grid.table("dwf", "table2").caption.endswith(only)


def test_rows_that_a_scale_does_not_have_get_no_further_row(expand):
    grid = expand("dwf", last_epoch=True)
    rows = last_rows(grid, "dwf", "table2")
    assert len(rows) == 5 and not any("SVHN" in row for row in rows)
    assert "At this scale they were" not in grid.table("dwf", "table2").caption


@pytest.mark.parametrize(
    ("match", "last_epoch", "said"),
    [
        ({"method": ["MARTT"]}, True, "dramoe.yaml: table2: last_epoch: unknown label of method 'MARTT'.*'MART'"),
        ({"methods": ["MART"]}, True, "last_epoch: match: axes methods; allowed: those of"),
        ({"method": ["MART"], "metric": ["Adv"]}, True, "last_epoch: match: axes method, metric; allowed: those of"),
        ({"method": ["MART"]}, ["martt"], "smoke.yaml: unknown method 'martt'"),
    ],
)
def test_slips_are_named(expand, match, last_epoch, said):
    with pytest.raises(ConfigError, match=said):
        expand("dramoe", last_epoch=last_epoch, by=lambda tables: tables["table2"]["last_epoch"].update(match=match))
