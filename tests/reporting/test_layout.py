"""What a table says of its cells: once, where it holds of all of them, and in words that are true of each."""

import json
import re

import pytest
from reporting_tree import cells, make_stale

from moat.config.grid import build_grid
from moat.config.project import Project
from moat.reporting.layout import arrange
from moat.reporting.results import Results
from moat.reporting.tables import table_frame
from project_copy import edit_yaml

STAND_IN = "stand-in: dataset digits in place of cifar10"
STALE = "stale: made by code or a recipe that has changed since"
LEADERBOARD = "unified-leaderboard"


@pytest.fixture
def layout(project, tree):
    """A table as it is arranged from the results that there are when it is called."""

    def call(study: str = "unified", name: str = "leaderboard"):
        loaded = Project(project)
        results = Results(tree.root, tree.scale, project=loaded)
        tables = build_grid(loaded, tree.scale, ["unified", "dramoe"]).tables
        table = next(each for each in tables if (each.study, each.name) == (study, name))
        return arrange(table, table_frame(table, results, loaded.scale(tree.scale)), results)

    return call


def does_not_apply(tree, method: str, setting: str) -> None:
    path = tree.base / f"evaluations/digits/resnet18/{method}/seed0/dramoe.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "not_applicable": {setting: "the model has no router"}}))


def test_what_holds_of_all_numbers_is_noted_once(tree, layout):
    tree.everything(methods=["standard", "pgd-at"], failed={"pgd-at": ("monotone-epsilon",)})
    make_stale(tree.base / "runs/digits/resnet18/pgd-at/seed0/run.json")
    found = layout()
    assert [text for mark, text in found.notes if mark == "all"] == [STAND_IN]
    marked = {label.split(" / ")[-1]: {entry.marks for entry in entries} for label, entries in found.rows}
    assert marked["standard"] == {()} and marked["PGD-AT"] == {("a", "b")} and marked["TRADES"] == {("c",)}
    assert dict(found.notes)["a"] == "unverified: the check monotone-epsilon failed" and dict(found.notes)["b"] == STALE


def test_a_failed_check_stays_at_its_numbers(tree, layout):
    tree.everything(failed=dict.fromkeys(("standard", "pgd-at", "trades"), ("threat-model",)))
    found = layout()
    assert found.notes == (("a", "unverified: the check threat-model failed"), ("all", STAND_IN))
    assert {entry.marks for _, entries in found.rows for entry in entries} == {("a",)}


def test_marks_of_what_the_scale_leaves_out_come_last(tree, layout):
    tree.everything(methods=["pgd-at"])
    notes = layout("dramoe", "table2").notes
    outside = ["is not part of scale" in text for mark, text in notes if mark != "all"]
    assert outside == sorted(outside) and True in outside and False in outside
    letters = [mark for mark, _ in notes if mark != "all"]
    assert letters == [chr(ord("a") + number) for number in range(len(letters))]


@pytest.mark.parametrize("suffix", ["md", "tex"])
def test_what_cannot_be_measured_is_not_called_not_run(tree, layout, moat, suffix):
    tree.everything(methods=["standard", "pgd-at"])
    does_not_apply(tree, "standard", "pgd10")
    entry = layout().rows[0][1][3]
    assert (entry.text, entry.verdict, entry.is_not_applicable) == ("n/a", "not-run", True)
    assert (entry.marks[0], "n/a: the model has no router") in layout().notes
    assert moat("tabulate") == moat("report") == 0
    assert "n/a: the model has no router" in (tree.base / f"tables/{LEADERBOARD}.{suffix}").read_text()
    page = (tree.base / "report.html").read_text()
    assert '<li class="v-not-run" data-verdicts="not-run">7 not run, 1 n/a</li>' in page
    assert list(cells(tree, LEADERBOARD)["verdict"]).count("not-run") == 8


def test_a_row_without_any_number_is_only_named_in_a_file(tree, layout, moat):
    """Published numbers keep theirs."""
    tree.everything(methods=["standard", "pgd-at"])
    assert layout().empty == ["TRADES"] and layout("dramoe", "table2").empty == []
    assert moat("tabulate") == 0
    for suffix in ("md", "tex"):
        text = (tree.base / f"tables/{LEADERBOARD}.{suffix}").read_text()
        assert text.count("TRADES") == 1 and "Not run: TRADES." in text


def test_nothing_measured_keeps_all_rows(layout):
    assert layout().empty == [] and len(layout().shown()[0]) == 3


def test_markdown_can_be_read_as_it_is(tree, moat):
    """What all rows share is said once, a row leads to its record, and a caption has lines."""
    tree.everything()
    assert moat("tabulate") == 0
    lines = (tree.base / f"tables/{LEADERBOARD}.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| "))
    assert header.startswith("| digits (for CIFAR-10) / ResNet-18 | clean | ")
    rows = [line for line in lines if line.startswith("| [")]
    assert [
        re.match(r"\| \[(.*?)\]\(\.\./runs/digits/resnet18/(.*?)/seed0/run\.json\) \| ", row).groups() for row in rows
    ] == [
        ("standard", "standard"),
        ("PGD-AT", "pgd-at"),
        ("TRADES", "trades"),
    ]
    assert all(row.count("](") == 1 for row in rows)
    assert max(map(len, lines)) < 250 and "ResNet-18" not in "".join(rows)


def test_words_match_and_are_not_reproduced(project, tree, layout, moat):
    """What our code took from the paper is no number that was reproduced."""

    def add(study):
        axis = {
            "axis": "kind",
            "points": [{"label": "PGD", "settings": ["pgd10"], "published": {"metric": "settings"}}],
        }
        column = {
            "axis": "what",
            "points": [{"label": "settings", "measure": "attack_property", "property": "parameters"}],
        }
        study["tables"]["words"] = {
            "title": "t",
            "caption": "c",
            "published": {"table": "4"},
            "rows": [axis],
            "columns": [column],
        }

    edit_yaml(project / "config/studies/unified.yaml", add)
    header = "paper,table,dataset,arch,method,metric,setting,value,std\n"
    text = header + "x,4,,,,settings,,eps=8/255; alpha=2/255; i=10,\n"
    (project / "config/published/unified.csv").write_text(text)
    ((_, (entry,)),) = layout(name="words").rows
    assert entry.verdict == "reproduced" and entry.comparison == "published eps=8/255; alpha=2/255; i=10 (matches)"
    assert moat("report") == 0
    assert ">1 as the paper says</li>" in (tree.base / "report.html").read_text()
