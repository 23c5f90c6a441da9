"""Each measure against its rows and records, computed here by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from reporting_tree import ROOT, Tree
from scipy.stats import kurtosis

from moat.base.errors import ConfigError, DataError
from moat.config.grid import Grid
from moat.config.grid_types import Cell, Table
from moat.config.project import Project
from moat.evaluation.statistics import wilson
from moat.reporting import measures, records, stated
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


@pytest.mark.parametrize("measure", ["training_hours", "gpu_hours"])
def test_hours_count_what_a_run_starts_from_once(tree, measure):
    """dwf <- two experts, one of which starts from the other."""
    seconds = {"training_hours": "wall_seconds", "gpu_hours": "gpu_seconds"}[measure]
    names = {m: tree.run(method=m) for m in ("dwf", "dwf-expert-fgsm", "dwf-expert-benign")}
    path = {method: {"path": f"results/smoke/runs/{name}"} for method, name in names.items()}
    run_json(tree, names["dwf-expert-benign"], **{seconds: 3600})
    run_json(tree, names["dwf-expert-fgsm"], **{seconds: 7200, "initialize_from": {"a": path["dwf-expert-benign"]}})
    starts = {"a": path["dwf-expert-benign"], "b": path["dwf-expert-fgsm"]}
    run_json(tree, names["dwf"], **{seconds: 1800, "initialize_from": starts})
    hours = cell(method="dwf", measure=measure, reads=("record",), suite="", settings=())
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


@pytest.mark.parametrize(
    # A training on a CPU takes no GPU-hours, which is no number to compare.
    ("measure", "record"), [("peak_memory", {"peak_memory_bytes": None}), ("gpu_hours", {"gpu_seconds": 0.0})],
)  # fmt: skip
def test_a_record_that_lacks_the_number_is_not_run(tree, measure, record):
    run_json(tree, tree.run(), **record)
    lacking = cell(measure=measure, reads=("record",), suite="", settings=())
    assert measured(tree, lacking)["verdict"] == "not-run"
    assert measure in not_run_reason(lacking, Results(tree.root, tree.scale))


@pytest.mark.parametrize(
    ("failed", "states", "text"),
    [
        ((), {}, "2 of 2"),
        (("threat-model",), {}, "1 of 2"),
        ((), {"threat-model": "not-applicable"}, "1 of 1"),
        ((), {"threat-model": "not-enough-examples"}, "1 of 1"),
        ((), {"threat-model": "unknown"}, "1 of 1"),
    ],
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


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"agreeing": 0.975}, 97.5), ({"agreeing": 0.975, "agreeing_straight_through": 0.125}, 12.5), ({}, None)],
)
def test_the_agreement_of_the_gradient_is_that_of_plain_attacks(tree, value, expected):
    path = tree.checks(tree.run())
    content = json.loads(path.read_text())
    content["checks"].append({"check": "gradient-agreement", "state": "passed", "passed": True, "value": value})
    path.write_text(json.dumps(content))
    found = measured(tree, cell(measure="gradient_agreement", reads=("checks",), suite="", settings=()))
    assert found.get("measured") == expected and (found["verdict"] == "not-run") == (expected is None)


# -- probes -------------------------------------------------------------------------
def probed(measure: str, probe: str, **changes) -> Cell:
    return cell(measure=measure, probe=probe, reads=("probe",), suite="", settings=(), **changes)


@pytest.mark.parametrize(("images", "expected"), [("clean", 90), ("attacked", 30)])
def test_the_fraction_of_images_that_prefer_expert_0(tree, images, expected):
    first_wins = {"clean": first(900), "attacked": first(300)}
    scores = {name: np.where(wins[:, None], [2.0, -1.0], [0.0, 0.5]) for name, wins in first_wins.items()}
    tree.probe(tree.run(), "routing", scores)
    found = measured(tree, probed("expert0_fraction", "routing", code_property=images))
    low, high = (100 * limit for limit in wilson(10 * expected, N))
    assert found["measured"] == expected
    assert (found["ci_low"], found["ci_high"], found["n"]) == (pytest.approx(low), pytest.approx(high), N)
    assert (found["metric"], found["verdict"]) == (f"expert0_fraction({images})", None)


def test_which_images_must_be_said(tree):
    tree.probe(tree.run(), "routing", {"clean": np.zeros((4, 2))})
    with pytest.raises(ConfigError, match="s.yaml: .*unknown property of expert0_fraction 'atacked'.*'attacked'"):
        measured(tree, probed("expert0_fraction", "routing", code_property="atacked"))


def test_sharpness_is_the_excess_kurtosis_with_a_jackknife_over_filters(tree):
    random = np.random.default_rng(0)
    # Laplace weights (excess kurtosis 3), not centred, each filter with a spread of its own.
    weights = (0.5 + random.laplace(size=(32, 3, 3, 3)) * random.uniform(0.5, 1.5, (32, 1, 1, 1))).astype(np.float32)
    tree.probe(tree.run(), "weights", {"weights": weights})
    found = measured(tree, probed("weight_kurtosis", "weights"))
    flat = weights.astype(np.float64).reshape(32, -1)
    assert found["measured"] == pytest.approx(kurtosis(flat.ravel()), abs=1e-4)
    without = np.array([kurtosis(np.delete(flat, filter, axis=0).ravel()) for filter in range(32)])
    half = 1.959964 * math.sqrt(31 / 32 * ((without - without.mean()) ** 2).sum())
    limits = found["measured"] - half, found["measured"] + half
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(limits, abs=2e-4)


def test_what_a_probe_took_of_other_weights_is_unverified(tree):
    name = tree.run()
    arrays = {"weights": np.random.default_rng(0).normal(size=(4, 3, 3, 3))}
    sharp = probed("weight_kurtosis", "weights")
    assert not_run_reason(sharp, Results(tree.root, tree.scale)) == "not probed yet"
    tree.probe(name, "weights", arrays, sha="0" * 64)
    found = measured(tree, sharp)
    assert (found["verdict"], found["checks_failed"]) == ("unverified", "model-changed;stale")


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


@pytest.mark.parametrize(
    ("settings", "parameters", "knowledge"),
    [
        (["fgsm_e01", "fgsm_e02", "fgsm_e09"], "eps in {0.01,0.02,0.09}", "white-box"),
        (["pgd10", "pgd50"], "eps=8/255; alpha=2/255; i in {10,50}", "white-box"),
        (["pgd100_ms"], "eps=8/255; alpha=2/255; i=100; restarts=3", "white-box"),
        (["square"], "eps=8/255", "black-box"),
        (["transfer_seed"], "eps=8/255; alpha=2/255; i=50", "black-box"),
    ],
)
def test_attack_settings_in_a_papers_words(settings, parameters, knowledge):
    project = Project(ROOT)
    assert stated.attack_property(project, settings, "parameters") == parameters
    assert stated.attack_property(project, settings, "knowledge") == knowledge


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda p: stated.attack_property(p, ["pgd10"], "epsilon"), "unknown property of attack settings 'epsilon'"),
        (lambda p: stated.recipe_property(p, "dwf", "epoch"), "unknown property of a recipe 'epoch'.*'epochs'"),
        (lambda p: stated.experts_property(p, "trades", "epochs"), "trades.yaml: no initialize_from"),
    ],
)
def test_a_stated_property_that_there_is_not(ask, said):
    with pytest.raises(ConfigError, match=said):
        ask(Project(ROOT))


@pytest.mark.parametrize(
    ("ours", "published", "same"),
    [("0.0005", "5e-4", True), ("128x3", "128x3", True), ("100", "150, 100", False), ("white-box", "black-box", False)],
)
def test_numbers_are_the_same_word_however_they_are_written(ours, published, same):
    assert stated.same(ours, published) == same


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
    folder = "results/smoke/evaluations/digits/resnet18/pgd-at/seed0"
    assert entry.command == (
        f"snakemake --cores all {folder}/dramoe.parquet {folder}/advmoe.parquet "
        "results/smoke/checks/digits/resnet18/pgd-at/seed0.json --config scale=smoke"
    )
    text = markdown.render(layout)
    assert "| [r](../runs/digits/resnet18/pgd-at/seed0/run.json) | 30.0 [" in text
    assert (tree.base / "tables" / "../runs/digits/resnet18/pgd-at/seed0/run.json").resolve().exists()
    assert "*advmoe-released 62.0 [" in text
    assert "\\emph{advmoe-released} & \\emph{62.0 [" in latex.render(layout)


def test_an_explanation_that_the_scale_leaves_out_is_said_to_be_absent(tree, one):
    tree.evaluation(one, "dramoe", rows({"pgd10": first(300)}))
    absent = {"method": "dwf-normalised", "not_run": "the method dwf-normalised is not part of scale smoke"}
    replica = cell(published=62.0, protocol="normalised-noclip-printed", suite="dwf", settings=("pgd10",), **absent)
    both = cell(published=62.0, alternatives=(replica,), tolerance=4.0)
    results = Results(tree.root, tree.scale)
    found = rows_of(both, results, COMPARABLE)
    assert [row["verdict"] for row in found] == ["below", "not-run"]
    table = Table("s", "t", "Title", "Caption", ("r",), ("c",), (both,))
    layout = arrange(table, frame(found), results)
    ((_, (entry,)),) = layout.rows
    note = "not run under normalised-noclip-printed: the method dwf-normalised is not part of scale smoke"
    assert layout.notes == (("a", note),) and entry.marks == ("a",)
    grid = Grid("smoke", (table,), (), (), (), {})
    (listed,) = records.not_run(grid, results)
    assert (listed["reason"], listed["places"]) == (
        absent["not_run"],
        {"s: Title": ["r × c (under normalised-noclip-printed)"]},
    )
    # A replica claims no robustness that a check could refute.
    flawed = cell(protocol="advmoe-released", suite="advmoe", settings=("pgd10_advmoe",))
    assert flawed.runs and not flawed.checks and cell().checks == cell().runs


def test_seeds_widen_an_interval():
    alone = over_seeds([0.5], (0.45, 0.55), n=100)
    several = over_seeds([0.4, 0.5, 0.6], (0.45, 0.55), n=100)
    assert (alone["measured_std"], several["measured_std"]) == (None, 10.0)
    margin = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert several["ci_high"] == pytest.approx(100 * (0.5 + math.hypot(0.05, margin)), abs=1e-3)
    assert several["ci_low"] == pytest.approx(100 * (0.5 - math.hypot(0.05, margin)), abs=1e-3)
