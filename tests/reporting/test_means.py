"""Cells that show a mean over settings: declared by patterns, computed from the rows, one image counted once."""

import numpy as np
import pandas as pd
import pytest
from reporting_tree import SUITES, Tree

from moat.base.errors import ConfigError
from moat.config.grid import Run, build_grid
from moat.config.project import Project
from moat.evaluation.statistics import mean_accuracy
from moat.reporting.intervals import summarise_means
from moat.reporting.metrics import collect
from moat.reporting.results import Results
from moat.reporting.tables import table_frame
from project_copy import edit_yaml

POINTS = [
    {"label": "fog", "settings": ["fog-*"], "aggregate": "mean"},
    {"label": "all", "settings": ["*-*"], "aggregate": "mean"},
    {"label": "fog, worst", "settings": ["fog-*"]},
    {"label": "clean", "settings": ["clean"]},
]


@pytest.fixture
def study(project):
    """The project, its table unified-leaderboard reduced to corruptions of one method."""

    def change(content):
        table = content["tables"]["leaderboard"]
        table["suite"] = "corruptions"
        table["columns"] = [{"axis": "attack", "points": POINTS}]
        table["rows"][-1]["points"] = [{"label": "PGD-AT", "method": "pgd-at"}]
        content["figures"] = {}

    edit_yaml(project / "config" / "studies" / "unified.yaml", change)
    return project


def evaluated(tree: Tree, monkeypatch, seeds=(0,), n=60) -> dict[int, pd.DataFrame]:
    names = Project(tree.root.parent).suite("corruptions")["settings"]
    monkeypatch.setitem(SUITES, "corruptions", names)
    frames = {}
    for seed in seeds:
        name = tree.run(seed=seed)
        tree.checks(name)
        random = np.random.default_rng(seed)
        hard = random.random(n)
        parts = [
            pd.DataFrame({"setting": setting, "index": np.arange(n), "correct": random.random(n) > hard})
            for setting in names
        ]
        frames[seed] = pd.concat(parts, ignore_index=True)
        tree.evaluation(name, "corruptions", frames[seed])
    return frames


def shown(project, scale="smoke"):
    grid = build_grid(Project(project), scale, ["unified"])
    return grid, Results(project / "results", scale)


def test_patterns_stand_for_the_settings_of_the_suite(study):
    grid, _ = shown(study)
    settings = {cell.column: cell.settings for cell in grid.table("unified", "leaderboard").cells}
    assert settings["fog"] == settings["fog, worst"] == tuple(f"fog-{severity}" for severity in range(1, 6))
    assert len(settings["all"]) == 95 and "clean" not in settings["all"]
    metrics = {cell.column: cell.metric for cell in grid.table("unified", "leaderboard").cells}
    assert metrics["fog"] == "mean_accuracy(fog-*)" and metrics["clean"] == "accuracy(clean)"


def test_a_mean_is_that_of_the_rows(study, monkeypatch):
    frame = evaluated(Tree(study), monkeypatch)[0]
    grid, results = shown(study)
    table = grid.table("unified", "leaderboard")
    content = table_frame(table, results, {"comparable": True}).set_index("column")
    for cell in table.cells[:2]:
        rows = frame[frame["setting"].isin(cell.settings)]
        found = content.loc[cell.column]
        assert found["measured"] == pytest.approx(100 * rows["correct"].mean(), abs=1e-3) and found["n"] == 60
        low, high = mean_accuracy(frame, cell.settings).interval()
        assert (found["ci_low"], found["ci_high"]) == pytest.approx((100 * low, 100 * high), abs=1e-3)
    worst = frame[frame["setting"].str.startswith("fog-")].groupby("index")["correct"].all().mean()
    assert content.loc["fog, worst"]["measured"] == pytest.approx(100 * worst, abs=1e-3)
    # 95 answers say more about 60 images than 5 do, but not as if they were about 1,140.
    widths = content["ci_high"] - content["ci_low"]
    assert widths["clean"] > widths["fog"] > widths["all"] > 0.5 * widths["fog"]


def test_metrics_name_means(study, monkeypatch):
    frame = evaluated(Tree(study), monkeypatch)[0]
    grid, results = shown(study)
    table = grid.table("unified", "leaderboard")
    run = Run(table.cells[0].dataset, "resnet18", "pgd-at", 0)
    content = collect([table], table_frame(table, results, {"comparable": True}), results)
    found = content["accuracy"][run.dataset]["resnet18"]["pgd-at"]["seed0"]["corruptions"]
    fog = frame[frame["setting"].str.startswith("fog-")]["correct"].mean()
    assert found["mean_accuracy(fog-*)"] == pytest.approx(100 * fog, abs=1e-3)


def test_seeds_are_averaged_and_their_images_counted_once():
    frames = [pd.DataFrame({"setting": "a", "index": range(50), "correct": np.arange(50) < k}) for k in (20, 30)]
    means = [mean_accuracy(frame, ["a"]) for frame in frames]
    found = summarise_means(means, where="here")
    assert found["measured"] == 50 and found["n"] == 50
    low, high = 100 * means[0].interval()[0], 100 * means[1].interval()[1]
    assert found["ci_low"] < low and found["ci_high"] > high


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"settings": ["fogg-*"]}, ["'fogg-*'", "corruptions"]),
        ({"settings": ["fog-*"], "aggregate": "best"}, ["aggregate", "worst", "mean"]),
    ],
)
def test_refusals(study, point, words):
    def change(content):
        content["tables"]["leaderboard"]["columns"][0]["points"] = [{"label": "x", **point}]

    edit_yaml(study / "config" / "studies" / "unified.yaml", change)
    with pytest.raises(ConfigError) as caught:
        shown(study)
    assert all(word in str(caught.value) for word in words)
