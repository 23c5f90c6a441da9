"""Each measure against its rows and records, computed here by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from reporting_tree import ROOT, Tree

from moat.base.errors import ConfigError, DataError
from moat.config.grid_types import Cell
from moat.config.project import Project
from moat.reporting import measures
from moat.reporting.intervals import over_seeds, paired_difference
from moat.reporting.layout import arrange
from moat.reporting.properties import describe
from moat.reporting.results import Results
from moat.reporting.tables import frame, measure_cell, not_run_reason, rows_of

COMPARABLE = {"comparable": True}
N = 1000


def cell(**changes) -> Cell:
    place = {"study": "s", "table": "t", "row": "r", "column": "c"}
    run = {"dataset": "digits", "arch": "resnet18", "method": "pgd-at", "seeds": (0,)}
    rest = {"suite": "dramoe", "settings": ("pgd10",), "protocol": "correct", "tolerance": 2.0}
    return Cell(**{**place, **run, **rest, **changes})


def rows(right: dict[str, np.ndarray]) -> pd.DataFrame:
    """Rows of an evaluation with exactly these examples right under each setting."""
    parts = [
        pd.DataFrame({"setting": name, "index": np.arange(len(mask)), "label": 0, "predicted": 0, "correct": mask})
        for name, mask in right.items()
    ]
    return pd.concat(parts, ignore_index=True)


def first(count: int, n: int = N) -> np.ndarray:
    return np.arange(n) < count


def last(count: int, n: int = N) -> np.ndarray:
    return np.arange(n) >= n - count


def measured(tree: Tree, what: Cell) -> dict:
    return measure_cell(what, Results(tree.root, tree.scale, project=Project(ROOT)), COMPARABLE)


def run_json(tree: Tree, name: str, **changes) -> None:
    path = tree.base / "runs" / name / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def one(tree):
    """A run with its checks; returns its name."""
    name = tree.run()
    tree.checks(name)
    return name


# -- accuracy -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("aggregate", "right", "expected"),
    [
        ("worst", {"a": first(600), "b": first(500)}, 50.0),
        ("worst", {"a": first(600), "b": last(600)}, 20.0),
        ("mean", {"a": first(600), "b": first(500)}, 55.0),
        ("mean", {"a": first(600), "b": last(600)}, 60.0),
        ("mean", {"a": first(1000), "b": first(0), "c": first(500)}, 50.0),
    ],
)
def test_worst_and_mean_of_several_settings(tree, one, aggregate, right, expected):
    tree.evaluation(one, "dramoe", rows(right))
    found = measured(tree, cell(settings=tuple(right), aggregate=aggregate))
    assert found["measured"] == pytest.approx(expected)
    assert (found["n"], found["verdict"]) == (N, None)
    assert found["ci_low"] < expected < found["ci_high"]


def test_a_setting_that_does_not_apply_is_left_out_of_the_worst(tree, one):
    path = tree.evaluation(one, "dramoe", rows({"pgd10": first(400)}))
    content = json.loads(path.with_suffix(".json").read_text())
    listed = {"pgd10_det": "the model has no router"}
    path.with_suffix(".json").write_text(json.dumps({**content, "not_applicable": listed}))
    assert measured(tree, cell(settings=("pgd10", "pgd10_det")))["measured"] == 40.0
    alone = cell(settings=("pgd10_det",))
    assert measured(tree, alone)["verdict"] == "not-run"
    assert not_run_reason(alone, Results(tree.root, tree.scale)) == "does not apply: the model has no router"


def test_settings_on_different_examples_are_refused(tree, one):
    tree.evaluation(one, "dramoe", rows({"pgd10": first(400), "aa": first(40, 100)}))
    assert measured(tree, cell(settings=("aa",)))["n"] == 100
    with pytest.raises(DataError, match="'pgd10' and 'aa' hold different examples"):
        measured(tree, cell(settings=("pgd10", "aa")))


# -- gap -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("clean", "attacked", "gap"),
    [(first(900), first(300), 60.0), (first(900), last(300), 60.0), (first(300), first(900), -60.0)],
)
def test_gap_is_the_difference_of_two_accuracies(tree, one, clean, attacked, gap):
    tree.evaluation(one, "dramoe", rows({"clean": clean, "cw": attacked}))
    found = measured(tree, cell(measure="robustness_gap", settings=("clean", "cw"), published=gap))
    assert found["measured"] == pytest.approx(gap)
    # Agresti and Min, by hand, on the discordant examples.
    only, other = (clean & ~attacked).sum() + 0.5, (~clean & attacked).sum() + 0.5
    centre = (only - other) / (N + 2)
    half = 1.959964 * math.sqrt(only + other - (only - other) ** 2 / (N + 2)) / (N + 2)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(
        (100 * (centre - half), 100 * (centre + half)), abs=0.01
    )


def test_paired_interval_is_narrower_than_that_of_independent_accuracies():
    _, (low, high) = paired_difference(both=300, first=600, second=300, n=N)
    independent = 1.96 * math.sqrt(0.6 * 0.4 / N + 0.3 * 0.7 / N)
    assert (high - low) / 2 < independent


def test_a_gap_needs_two_settings(tree, one):
    tree.evaluation(one, "dramoe", rows({"clean": first(1)}))
    with pytest.raises(ConfigError, match="s.yaml: t: r x c: .*between two"):
        measured(tree, cell(measure="robustness_gap", settings=("clean",)))


# -- costs ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("measure", "record", "expected", "shown"),
    [
        ("parameters", {"parameters": 11_173_962}, 11_173_962, "11.17 M"),
        ("macs", {"macs_per_image": 555_000_000}, 555_000_000, "555 M"),
        ("images_per_second", {"images_per_second": 1234.5}, 1234.5, "1.234 k"),
        ("peak_memory", {"peak_memory_bytes": 8_500_000_000}, 8.5, "8.50"),
        ("training_hours", {"wall_seconds": 5400}, 1.5, "1.5"),
    ],
)
def test_costs_come_from_the_record(tree, measure, record, expected, shown):
    run_json(tree, tree.run(), **record)
    found = measured(tree, cell(measure=measure, reads=("record",), suite="", settings=()))
    assert (found["measured"], found["ci_low"], found["ci_high"], found["n"]) == (expected, expected, expected, None)
    assert (found["verdict"], found["checks_failed"], found["metric"]) == (None, None, measure)
    assert measures.get(measure).show(found["measured"]) == shown


def test_hours_count_what_a_run_starts_from_once(tree):
    """dwf <- two experts, one of which starts from the other."""
    names = {m: tree.run(method=m) for m in ("dwf", "dwf-expert-fgsm", "dwf-expert-benign")}
    path = {method: {"path": f"results/quickstart/runs/{name}"} for method, name in names.items()}
    run_json(tree, names["dwf-expert-benign"], wall_seconds=3600)
    run_json(tree, names["dwf-expert-fgsm"], wall_seconds=7200, initialize_from={"a": path["dwf-expert-benign"]})
    starts = {"a": path["dwf-expert-benign"], "b": path["dwf-expert-fgsm"]}
    run_json(tree, names["dwf"], wall_seconds=1800, initialize_from=starts)
    hours = cell(method="dwf", measure="training_hours", reads=("record",), suite="", settings=())
    assert measured(tree, hours)["measured"] == 3.5
    (tree.base / "runs" / names["dwf-expert-fgsm"] / "run.json").unlink()
    with pytest.raises(DataError, match="dwf-expert-fgsm/seed0: no run.json"):
        measured(tree, hours)


@pytest.mark.parametrize(
    ("device", "hardware", "verdict", "reasons"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100", "reproduced", None),
        ("NVIDIA H200", "A100", "unverified", "other-hardware"),
        ("cpu", "A100", "unverified", "other-hardware"),
        ("cpu", None, "reproduced", None),
    ],
)
def test_a_published_cost_is_compared_on_its_hardware_only(tree, device, hardware, verdict, reasons):
    run_json(tree, tree.run(), wall_seconds=5.3 * 3600, device=device)
    hours = cell(measure="training_hours", reads=("record",), suite="", settings=(), tolerance=0.5)
    found = measured(tree, replace(hours, published=5.0, hardware=hardware))
    assert (found["verdict"], found["checks_failed"]) == (verdict, reasons)


def test_a_record_that_lacks_the_number_is_not_run(tree):
    run_json(tree, tree.run(), peak_memory_bytes=None)
    lacking = cell(measure="peak_memory", reads=("record",), suite="", settings=())
    assert measured(tree, lacking)["verdict"] == "not-run"
    assert "peak_memory" in not_run_reason(lacking, Results(tree.root, tree.scale))


@pytest.mark.parametrize(
    ("failed", "states", "text"),
    [((), {}, "2 of 2"), (("threat-model",), {}, "1 of 2"), ((), {"threat-model": "not-applicable"}, "1 of 1")],
)
def test_checks_are_counted(tree, failed, states, text):
    path = tree.checks(tree.run(), failed)
    content = json.loads(path.read_text())
    for check in content["checks"]:
        check["state"] = states.get(check["check"], "passed")
    path.write_text(json.dumps(content))
    found = measured(tree, cell(measure="checks_passed", reads=("checks",), suite="", settings=()))
    assert measures.get("checks_passed").text(found) == text
    assert found["checks_failed"] is None


# -- properties of the code ---------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("soe", ("Hard", "Flat", "Joint", "Single")),
        ("advmoe-released", ("Hard", "Flat", "Joint", "Sparse")),
        ("dwf", ("Soft", "Flat", "Pre-trained+Joint", "Fractional")),
        ("dwf-frozen", ("Soft", "Flat", "Pre-trained", "Fractional")),
        ("sramoe", ("Soft", "Flat", "Pre-trained", "Fractional")),
        ("dramoe", ("Hard", "Flat", "Joint", "Sparse")),
    ],
)
def test_what_kind_of_mixture_a_method_is(method, words):
    found = tuple(describe(Project(ROOT), method, name) for name in ("gating", "topology", "training", "activation"))
    assert found == words


@pytest.mark.parametrize(
    ("method", "name", "said"),
    [
        ("pgd-at", "gating", "pgd-at.yaml: not a mixture of experts"),
        ("soe", "check", "unknown property of a mixture 'check'"),
    ],
)
def test_a_property_that_there_is_not(method, name, said):
    with pytest.raises(ConfigError, match=said):
        describe(Project(ROOT), method, name)


@pytest.mark.parametrize(
    ("published", "verdict", "reasons"),
    [("Soft", "reproduced", None), ("Hard", "unverified", "differs-in-code"), (None, None, None)],
)
def test_a_word_is_the_papers_or_is_said_to_differ(tree, published, verdict, reasons):
    asked = {"measure": "code_property", "code_property": "gating", "reads": (), "suite": "", "settings": ()}
    word = cell(method="dwf", published=published, **asked)
    found = measured(tree, word)
    assert (found["measured"], found["verdict"], found["checks_failed"]) == ("Soft", verdict, reasons)
    assert found["metric"] == "code_property(gating)"


# -- explanations -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("correct", "flawed", "check", "verdicts"),
    [
        (300, 620, (), ("explained", "reproduced")),
        (620, 620, (), ("reproduced", "reproduced")),
        (300, 300, (), ("below", "below")),
        (900, 620, (), ("explained", "reproduced")),
        (900, 900, (), ("above", "above")),
        # A check judges the claim of robustness; the replica claims none.
        (300, 620, ("threat-model",), ("unverified", "reproduced")),
        (300, None, (), ("below", "not-run")),
    ],
)
def test_a_flawed_protocol_explains_what_the_correct_one_does_not_give(tree, correct, flawed, check, verdicts):
    n, scale = 10_000, 10
    name = tree.run()
    tree.checks(name, check)
    tree.evaluation(name, "dramoe", rows({"pgd10": first(correct * scale, n)}))
    if flawed is not None:
        tree.evaluation(name, "advmoe", rows({"pgd10_advmoe": first(flawed * scale, n)}))
    both = cell(published=62.0)
    replica = replace(both, protocol="advmoe-released", suite="advmoe", settings=("pgd10_advmoe",))
    both = replace(both, alternatives=(replica,))
    found = rows_of(both, Results(tree.root, tree.scale), COMPARABLE)
    assert tuple(row["verdict"] for row in found) == verdicts
    assert [row["protocol"] for row in found] == ["correct", "advmoe-released"]
    assert found[0]["measured"] == correct / 10


def test_an_explanation_is_printed_beside_its_cell(tree, one):
    from moat.config.grid_types import Table
    from moat.reporting import latex, markdown

    tree.evaluation(one, "dramoe", rows({"pgd10": first(300)}))
    tree.evaluation(one, "advmoe", rows({"pgd10_advmoe": first(620)}))
    replica = cell(
        published=62.0, protocol="advmoe-released", suite="advmoe", settings=("pgd10_advmoe",), tolerance=4.0
    )
    both = cell(published=62.0, alternatives=(replica,), tolerance=4.0)
    table = Table("s", "t", "Title", "Caption", ("r",), ("c",), (both,))
    results = Results(tree.root, tree.scale)
    layout = arrange(table, frame(rows_of(both, results, COMPARABLE)), results)
    ((_, (entry,)),) = layout.rows
    assert entry.verdict == "explained"
    assert entry.comparison == "published 62 (explained)"
    assert entry.explanation.startswith("advmoe-released 62.0 [")
    folder = "results/quickstart/evaluations/digits/resnet18/pgd-at/seed0"
    assert entry.command == (
        f"snakemake --cores all {folder}/dramoe.parquet {folder}/advmoe.parquet "
        "results/quickstart/checks/digits/resnet18/pgd-at/seed0.json --config scale=quickstart"
    )
    text = markdown.render(layout)
    assert "[30.0](../runs/digits/resnet18/pgd-at/seed0/run.json)" in text
    assert (tree.base / "tables" / "../runs/digits/resnet18/pgd-at/seed0/run.json").resolve().exists()
    assert "*advmoe-released 62.0 [" in text
    assert "\\emph{advmoe-released} & \\emph{62.0 [" in latex.render(layout)


def test_seeds_widen_an_interval():
    alone = over_seeds([0.5], (0.45, 0.55), n=100)
    several = over_seeds([0.4, 0.5, 0.6], (0.45, 0.55), n=100)
    assert (alone["measured_std"], several["measured_std"]) == (None, 10.0)
    margin = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert several["ci_high"] == pytest.approx(100 * (0.5 + math.hypot(0.05, margin)), abs=1e-3)
    assert several["ci_low"] == pytest.approx(100 * (0.5 - math.hypot(0.05, margin)), abs=1e-3)
