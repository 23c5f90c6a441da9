"""The last epoch in tables and on the page: rows, checks and words of its own."""

import re

import pytest
from reporting_tree import cells, rows

from moat.config.grid_types import Cell, measure_of
from project_copy import edit_yaml

RUN = "digits/resnet18/pgd-at/seed0"
BEST = {"clean": 0.8, "fgsm": 0.6, "pgd10": 0.5}
# Overfitted to one step: FGSM finds nothing any more, PGD nearly everything.
LAST = {"clean": 0.9, "fgsm": 0.85, "pgd10": 0.02}


@pytest.fixture
def overfitted(project, tree):
    """Results of PGD-AT, whose last epoch failed a check that the best one passed."""

    def declare(study):
        study["tables"]["leaderboard"]["last_epoch"] = {"match": {"method": ["PGD-AT"]}}
        study["figures"] = {}

    edit_yaml(project / "config/studies/unified.yaml", declare)
    edit_yaml(project / "config/config.yaml", lambda content: content.update(studies=["unified"]))
    tree.run(method="pgd-at")
    for name, rates, failed in ((RUN, BEST, ()), (f"{RUN}-last", LAST, ("monotone-epsilon",))):
        tree.evaluation(name, "dramoe", rows("dramoe", rates, 400, seed=0))
        tree.checks(name, failed)
    return tree


def asked(project, last_epoch):
    edit_yaml(project / "config/scales/smoke.yaml", lambda scale: scale.update(last_epoch=last_epoch))


def test_a_row_shows_the_last_epoch_with_its_own_checks(project, overfitted, moat):
    asked(project, ["pgd-at"])
    assert moat("tabulate") == moat("tabulate", "--cells") == 0
    content = cells(overfitted, "unified-leaderboard")
    for rates, suffix in ((BEST, ""), (LAST, " (last epoch)")):
        row = content[content["row"] == f"digits (for CIFAR-10) / ResNet-18 / PGD-AT{suffix}"].set_index("column")
        for column, setting in (("clean", "clean"), ("FGSM", "fgsm"), ("PGD-10", "pgd10")):
            expected = rows("dramoe", rates, 400, seed=0).query("setting == @setting")["correct"].mean()
            assert row.loc[column, "measured"] == pytest.approx(100 * expected, abs=1e-3)
            metric = f"accuracy({setting})"
            assert row.loc[column, "metric"] == (f"last_epoch_{metric}" if suffix else metric)
        assert set(row["checks_failed"]) == ({"monotone-epsilon"} if suffix else {""})
    text = " ".join((overfitted.base / "tables/unified-leaderboard.md").read_text().split())
    assert "PGD-AT (last epoch)" in text and "instead of those of the best epoch" in text
    numbers = (overfitted.base / "metrics.json").read_text()
    assert '"seed0-last"' in numbers


@pytest.mark.long
def test_the_figure_of_all_published_numbers_is_drawn_beside_it(project, overfitted, moat):
    figure = {"title": "Published", "caption": "Published.", "kind": "paper_vs_measured"}
    edit_yaml(project / "config/studies/unified.yaml", lambda study: study["figures"].update(published=figure))
    asked(project, True)
    assert moat("tabulate") == moat("tabulate", "--cells") == moat("draw") == 0
    assert (overfitted.base / "figures/unified-published.png").exists()


@pytest.mark.parametrize("weights", ["best", "last"])
@pytest.mark.parametrize("aggregate", ["worst", "mean"])
@pytest.mark.parametrize("measure", ["accuracy", "robustness_gap", "parameters"])
def test_a_metric_names_its_measure(measure, aggregate, weights):
    place = dict.fromkeys(("study", "table", "row", "column", "dataset", "arch", "method", "suite", "protocol"), "")
    what = {"measure": measure, "aggregate": aggregate, "weights": weights, "settings": ("fog-1",)}
    cell = Cell(**place, seeds=(0,), **what)
    assert measure_of(cell.metric) == measure


def test_the_page_shows_both_rows_and_lists_both_evaluations_and_checks(project, overfitted, moat):
    asked(project, True)
    assert moat("tabulate") == moat("tabulate", "--cells") == moat("report") == 0
    page = (overfitted.base / "report.html").read_text()
    assert "PGD-AT (last epoch)" in page and "instead of those of the best epoch" in page
    for file in (f"evaluations/{RUN}-last/dramoe.parquet", f"checks/{RUN}-last.json"):
        assert re.search(re.escape(file), page), file


def test_where_it_was_not_evaluated_tables_and_page_say_so(project, overfitted, moat):
    asked(project, False)
    assert moat("tabulate") == moat("tabulate", "--cells") == moat("report") == 0
    said = "The weights of the last epoch were not evaluated at this scale."
    for file in ("tables/unified-leaderboard.md", "tables/unified-leaderboard.tex", "report.html"):
        text = (overfitted.base / file).read_text()
        assert said in " ".join(text.split()) and "PGD-AT (last epoch)" not in text, file


def test_a_last_epoch_that_is_not_evaluated_yet_is_not_run(project, overfitted, moat):
    asked(project, True)
    for path in (overfitted.base / f"evaluations/{RUN}-last").iterdir():
        path.unlink()
    assert moat("tabulate") == 0
    content = cells(overfitted, "unified-leaderboard")
    verdicts = content[content["row"].str.contains("PGD-AT")].groupby("row")["verdict"].unique().str[0]
    assert sorted(verdicts) == ["", "not-run"]
