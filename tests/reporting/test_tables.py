"""Numbers and verdicts of cells, against the rows themselves."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from reporting_tree import SUITES, Tree, make_project, make_stale, rows

from moat.base.errors import DataError
from moat.commands.cli import main
from moat.config.grid import Cell, Run, build_grid
from moat.config.project import Project
from moat.reporting.intervals import summarise
from moat.reporting.results import Results
from moat.reporting.tables import COLUMNS, count_published, count_verdicts, frame, measure_cell
from project_copy import edit_yaml

HEADER = (
    "study,table,row,column,dataset,arch,method,metric,protocol,published,published_std,measured,measured_std,"
    "ci_low,ci_high,n,seeds,verdict,checks_failed"
)
COMPARABLE, REDUCED = {"comparable": True}, {"comparable": False}


def make_cell(**changes) -> Cell:
    defaults = {
        "study": "s",
        "table": "t",
        "row": "r",
        "column": "c",
        "dataset": "digits",
        "arch": "resnet18",
        "method": "pgd-at",
        "suite": "dramoe",
        "settings": ("pgd10",),
        "protocol": "correct",
        "seeds": (0,),
        "tolerance": 2.0,
    }
    return Cell(**{**defaults, **changes})


def exact_rows(correct: int, n: int) -> pd.DataFrame:
    """An evaluation with exactly ``correct`` of ``n`` right under every setting."""
    frame = rows("dramoe", {}, n, seed=0)
    frame["correct"] = frame["index"] < correct
    return frame


def wilson_points(correct: int, n: int) -> tuple[float, float]:
    """The textbook formula, independent of the package."""
    z, p = 1.959963984540054, correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0, centre - half), 100 * min(1, centre + half)


def measured(tree: Tree, cell: Cell, scale=COMPARABLE) -> dict:
    return measure_cell(cell, Results(tree.root, tree.scale), scale)


def test_columns_are_the_contract():
    assert ",".join(COLUMNS) == HEADER


def test_every_measured_cell_follows_from_the_rows(tree, moat):
    tree.everything()
    assert moat("tabulate") == 0
    content = pd.read_csv(tree.base / "tables" / "unified-leaderboard.csv", dtype={"seeds": str})
    assert ",".join(content.columns) == HEADER
    assert len(content) == 21
    for row in content.to_dict("records"):
        frame = pd.read_parquet(
            tree.base / "evaluations" / row["dataset"] / row["arch"] / row["method"] / "seed0/dramoe.parquet"
        )
        settings = row["metric"].removeprefix("accuracy(").removesuffix(")").split("+")
        right = frame[frame["setting"].isin(settings)].pivot(index="index", columns="setting", values="correct")
        survives = right.all(axis=1)
        low, high = wilson_points(int(survives.sum()), len(survives))
        assert row["measured"] == pytest.approx(100 * survives.mean(), abs=1e-4)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-3)
        assert (row["n"], row["seeds"]) == (400, "0")
        assert pd.isna(row["measured_std"])
    worst = content[content["column"] == "worst case"].set_index("method")["measured"]
    single = content[content["column"] == "PGD-50"].set_index("method")["measured"]
    assert worst["pgd-at"] < single["pgd-at"]


@pytest.mark.parametrize(
    ("published", "correct", "expected"),
    [
        (50.0, 5000, "reproduced"),
        (50.9, 5000, "reproduced"),
        (40.0, 5000, "above"),
        (60.0, 5000, "below"),
        (51.5, 5000, "unverified"),
    ],
)
def test_verdict_by_equivalence(tree, published, correct, expected):
    name = tree.run()
    tree.checks(name)
    tree.evaluation(name, "dramoe", exact_rows(correct, 10_000))
    row = measured(tree, make_cell(published=published))
    assert (row["measured"], row["verdict"], row["checks_failed"]) == (50.0, expected, None)


@pytest.mark.parametrize(
    ("changes", "scale", "verdict", "reasons"),
    [
        ({}, REDUCED, None, None),
        ({"published": 50.0}, REDUCED, "unverified", "budget"),
        (
            {"published": 50.0, "substitutes": (("dataset", "cifar10"),)},
            COMPARABLE,
            "unverified",
            "stand-in dataset cifar10->digits",
        ),
        (
            {"published": 50.0, "substitutes": (("dataset", "cifar10"),)},
            REDUCED,
            "unverified",
            "budget;stand-in dataset cifar10->digits",
        ),
        ({"seeds": (0, 1)}, COMPARABLE, "unverified", "seeds-missing"),
        ({"method": "trades"}, COMPARABLE, "not-run", None),
        ({"not_run": "too dear"}, COMPARABLE, "not-run", None),
    ],
)
def test_verdict_where_nothing_can_be_compared(tree, changes, scale, verdict, reasons):
    name = tree.run()
    tree.checks(name)
    tree.evaluation(name, "dramoe", exact_rows(5000, 10_000))
    row = measured(tree, make_cell(**changes), scale)
    assert (row["verdict"], row.get("checks_failed")) == (verdict, reasons)
    assert ("measured" in row) == (verdict != "not-run")


def test_a_failed_check_and_its_absence_are_named(tree):
    name = tree.run()
    tree.evaluation(name, "dramoe", exact_rows(5000, 10_000))
    assert measured(tree, make_cell(published=50.0))["checks_failed"] == "checks-not-run"
    tree.checks(name, ("monotone-epsilon", "threat-model"))
    row = measured(tree, make_cell(published=50.0))
    assert (row["verdict"], row["checks_failed"]) == ("unverified", "monotone-epsilon;threat-model")


@pytest.mark.parametrize("part", ["runs/{}/run.json", "evaluations/{}/dramoe.json", "checks/{}.json"])
def test_a_number_of_changed_sources_is_marked_and_keeps_its_verdict(tree, part):
    name = tree.run()
    tree.checks(name)
    tree.evaluation(name, "dramoe", exact_rows(5000, 10_000))
    make_stale(tree.base / part.format(name))
    row = measured(tree, make_cell(published=50.0))
    assert (row["verdict"], row["checks_failed"]) == ("reproduced", "stale")
    row = measured(tree, make_cell(published=50.0), REDUCED)
    assert (row["verdict"], row["checks_failed"]) == ("unverified", "budget;stale")


def test_what_a_number_does_not_rest_on_may_be_stale(tree):
    name = tree.run()
    tree.checks(name)
    tree.evaluation(name, "dramoe", exact_rows(5000, 10_000))
    make_stale(tree.base / f"evaluations/{name}/dramoe.json")
    cost = make_cell(measure="parameters", reads=("record",), suite="", settings=())
    assert measured(tree, cost)["checks_failed"] is None
    make_stale(tree.base / f"runs/{name}/run.json")
    assert measured(tree, cost)["checks_failed"] == "stale"


def test_an_evaluation_of_other_weights_is_not_taken_for_this_run(tree):
    name = tree.run()
    tree.checks(name)
    tree.evaluation(name, "dramoe", exact_rows(5000, 10_000), sha="f" * 64)
    row = measured(tree, make_cell(published=50.0))
    assert (row["verdict"], row["checks_failed"]) == ("unverified", "model-changed;stale")


def test_several_seeds(tree):
    rates = [4800, 5000, 5300]
    for seed, correct in enumerate(rates):
        name = tree.run(seed=seed)
        tree.checks(name)
        tree.evaluation(name, "dramoe", exact_rows(correct, 10_000))
    row = measured(tree, make_cell(published=50.0, seeds=(0, 1, 2)))
    mean, spread = np.mean(rates) / 100, np.std(rates, ddof=1) / 100
    low, high = wilson_points(round(np.mean(rates)), 10_000)
    margin = 4.302652729911275 * spread / math.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert row["measured"] == pytest.approx(mean, abs=1e-4)
    assert row["measured_std"] == pytest.approx(spread, abs=1e-4)
    assert row["ci_low"] == pytest.approx(mean - math.hypot(mean - low, margin), abs=1e-2)
    assert row["ci_high"] == pytest.approx(mean + math.hypot(high - mean, margin), abs=1e-2)
    assert (row["n"], row["seeds"], row["verdict"]) == (10_000, "0;1;2", "unverified")


@pytest.mark.parametrize("correct", [0, 100])
def test_interval_stays_a_proportion(correct):
    row = summarise([(correct, 100), (correct, 100)], where="here")
    assert 0 <= row["ci_low"] <= row["measured"] <= row["ci_high"] <= 100
    assert row["measured_std"] == 0


def test_seeds_on_different_examples_are_refused():
    with pytest.raises(DataError, match=r"here: .*\[90, 100\]"):
        summarise([(5, 90), (5, 100)], where="here")


def test_a_setting_that_a_suite_was_given_later_is_not_run(tree, moat):
    tree.everything(methods=["pgd-at"])
    path = tree.base / "evaluations/digits/resnet18/pgd-at/seed0/dramoe.parquet"
    frame = pd.read_parquet(path)
    frame[frame["setting"] != "pgd50"].to_parquet(path)
    record = json.loads(path.with_suffix(".json").read_text())
    record["accuracy"] = {name: {} for name in frame["setting"].unique() if name != "pgd50"}
    path.with_suffix(".json").write_text(json.dumps(record))
    assert moat("tabulate") == 0
    cells = pd.concat(pd.read_csv(each) for each in sorted((tree.base / "tables").glob("*.csv")))
    cells = cells[(cells["method"] == "pgd-at") & (cells["protocol"] == "correct")]
    measured = cells[cells["verdict"] != "not-run"]
    assert len(measured) and len(cells) > len(measured)
    markdown = "".join(each.read_text() for each in (tree.base / "tables").glob("*.md"))
    assert "evaluated before the suite dramoe had all settings that this needs" in markdown


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frame: frame[frame["setting"] != "pgd50"], "no rows for the setting 'pgd50'"),
        (lambda frame: frame.drop(frame[frame["setting"] == "pgd50"].index[:3]), "different examples"),
        (lambda frame: frame.drop(columns="correct"), "no column 'correct'"),
        (None, "not a readable parquet file"),
    ],
)
def test_a_damaged_evaluation_is_named(tree, moat, capsys, damage, message):
    tree.everything(methods=["pgd-at"])
    path = tree.base / "evaluations/digits/resnet18/pgd-at/seed0/dramoe.parquet"
    if damage is None:
        path.write_bytes(path.read_bytes()[:100])
    else:
        damage(pd.read_parquet(path)).to_parquet(path)
    assert moat("tabulate", "--study", "unified") == 3
    error = capsys.readouterr().err
    assert str(path) in error
    import re

    assert re.search(message, error), error


@pytest.mark.long
def test_each_parquet_file_is_read_once(tree, project, monkeypatch):
    import pyarrow.parquet

    tree.everything()
    opened = []
    parquet_file = pyarrow.parquet.ParquetFile
    monkeypatch.setattr(
        pyarrow.parquet, "ParquetFile", lambda path, **rest: opened.append(path) or parquet_file(path, **rest)
    )
    arguments = ["--project", str(project), "--scale", "smoke", "--results", str(tree.root)]
    for command in (["tabulate"], ["tabulate", "--cells"], ["draw"], ["report"]):
        opened.clear()
        assert main([*arguments[:2], *command, *arguments[2:]]) == 0
        assert opened and len(opened) == len(set(opened))


def test_results_count_what_was_not_announced(tree):
    name = tree.run()
    tree.evaluation(name, "dramoe", exact_rows(7, 10))
    assert Results(tree.root, tree.scale).counts(
        Run("digits", "resnet18", "pgd-at", 0), "dramoe", ["clean", "bim"]
    ) == (7, 10)


def test_grid_of_a_comparable_scale_reaches_a_verdict(tmp_path):
    """From the YAML to ``reproduced``, on the data set that the study names."""
    project = make_project(tmp_path)
    tree = Tree(project, "paper")
    edit_yaml(project / "config/scales/paper.yaml", lambda content: content.update(max_seeds=1))
    cells = build_grid(Project(project), "paper", ["dramoe"]).table("dramoe", "table2").cells
    name = tree.run(dataset="cifar10", method="trades")
    tree.checks(name)
    tree.evaluation(name, "dramoe", exact_rows(5250, 10_000))
    results = Results(tree.root, "paper")
    verdicts = {
        cell.column: measure_cell(cell, results, COMPARABLE)["verdict"]
        for cell in cells
        if cell.row == "ResNet-18 / TRADES"
    }
    assert verdicts == {
        "CIFAR-10 / Std": "below",
        "CIFAR-10 / Adv": "reproduced",
        "CIFAR-100 / Std": "not-run",
        "CIFAR-100 / Adv": "not-run",
    }


def test_counts_of_verdicts():
    verdicts = ["not-run", None, "below", "below", ""]
    content = frame([{"study": "s", "column": str(n), "verdict": verdict} for n, verdict in enumerate(verdicts)])
    assert count_verdicts(content) == {"below": 2, "not-run": 1, "measured": 2}


def test_outcomes_of_published_numbers():
    """Explanations stand behind their cell and are not counted, nor are words, settings, and what nobody published."""
    cells = [("reproduced", 1.0), ("explained", 2.0), ("above", 3.0), ("below", 4.0), ("unverified", 5.0)]
    cells += [("not-run", 6.0), ("reproduced", "Hard"), ("not-run", None), ("below", 7.0)]
    content = [
        {"study": "s", "column": str(n), "verdict": verdict, "published": published, "protocol": "correct"}
        for n, (verdict, published) in enumerate(cells)
    ]
    content.insert(2, {**content[1], "verdict": "reproduced", "protocol": "advmoe-released"})
    # A setting that is written as a number.
    content.append({**content[0], "column": "lr", "published": 0.01, "metric": "recipe_property(lr)"})
    assert count_published(frame(content)) == {
        **{"reproduced": 1, "explained": 1, "contradicted": 3, "unverified": 1, "not run": 1}
    }


def test_suites_of_the_tests_are_those_of_the_project(project):
    for suite, settings in SUITES.items():
        # A net without a router has no rows without its gradient.
        there = Project(project).suite(suite)["settings"]
        assert [each for each in there if each in settings or not each.endswith("_det")] == settings
