"""`moat publish`: what git keeps of a scale; and nothing that shows numbers is replaced by something emptier."""

import json
import shutil

import pandas as pd
import pytest
from reporting_tree import Tree, make_project, rows

from moat.commands.cli import main
from moat.reporting import evidence
from project_copy import edit_yaml

STANDARD = "digits/resnet18/standard/seed0"
PGD_AT = "digits/resnet18/pgd-at/seed0"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project whose results have a table, with weights, and what nobody asks for."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    edit_yaml(folder / "config/config.yaml", lambda content: content.update(studies=["unified"]))
    tree = Tree(folder)
    for method in ("standard", "pgd-at"):
        name = tree.run(method=method)
        tree.checks(name)
        for suite in ("dramoe", "epsilon"):
            tree.evaluation(name, suite, rows(suite, {}, 40, seed=0))
        (tree.path("runs", name) / "model.safetensors").write_bytes(b"w" * 1000)
    tree.evaluation(STANDARD, "advmoe", rows("advmoe", {}, 40, seed=0))
    return folder


@pytest.fixture
def project(built, tmp_path):
    shutil.copytree(built, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(scope="module")
def shown(built, tmp_path_factory):
    """The same with all that shows its numbers."""
    folder = shutil.copytree(built, tmp_path_factory.mktemp("shown") / "project")
    for each in (["tabulate"], ["tabulate", "--cells"], ["draw"], ["report"]):
        assert moat(folder, *each, "--scale", "smoke") == 0
    return folder


def moat(project, *command):
    return main(["--project", str(project), *command])


def publish(project, *options):
    return moat(project, "publish", "--scale", "smoke", *options)


def published(project):
    folder = project / "results/evidence/smoke"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_rows_records_tables_figures_and_page_are_published_and_weights_where_asked_for(project, capsys):
    assert publish(project, "--weights", STANDARD) == 0
    found = published(project)
    assert {f"runs/{name}/{file}" for name in (STANDARD, PGD_AT) for file in ("run.json", "history.csv")} <= found
    assert {f"evaluations/{STANDARD}/dramoe.{end}" for end in ("parquet", "json")} <= found
    assert {"report.html", "README.md", "evidence.json", "metrics.json", "tables/cells.csv"} <= found
    assert {path for path in found if path.endswith("model.safetensors")} == {f"runs/{STANDARD}/model.safetensors"}
    # What no table asks for is no evidence of one.
    assert not any("advmoe" in path for path in found)
    assert "not published, because it is not there: results/smoke/runs/" in capsys.readouterr().out


def test_the_page_is_rendered_again_from_the_evidence_alone(project):
    assert publish(project) == 0
    shutil.rmtree(project / "results/smoke")
    page = project / "results/evidence/smoke/report.html"
    before = page.read_bytes()
    page.unlink()
    assert moat(project, "report", "--results", str(page.parent)) == 0
    assert page.read_bytes() == before


@pytest.mark.long
def test_publishing_again_drops_what_is_no_longer_asked_for_and_keeps_the_readme(project):
    assert publish(project, "--weights", STANDARD) == 0
    readme = project / "results/evidence/smoke/README.md"
    readme.write_text("by hand")
    assert publish(project, "--weights", PGD_AT) == 0
    weights = {path for path in published(project) if path.endswith(".safetensors")}
    assert weights == {f"runs/{PGD_AT}/model.safetensors"} and readme.read_text() == "by hand"


@pytest.mark.long
def test_evidence_is_not_replaced_by_emptier_evidence(project, capsys):
    assert publish(project) == 0
    before = published(project)
    (project / f"results/smoke/evaluations/{PGD_AT}/dramoe.parquet").unlink()
    capsys.readouterr()
    assert publish(project) == 2
    assert "pgd-at/seed0/dramoe.parquet is published" in capsys.readouterr().err
    assert published(project) == before
    assert publish(project, "--allow-missing") == 0
    assert before - published(project) == {f"evaluations/{PGD_AT}/dramoe.parquet"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "digits/resnet18/trdes/seed0"], "unknown run of scale smoke"),
        (["--weights", "digits/resnet18/trades/seed0"], "weights to be published are not there"),
    ],
    ids=["no such run", "no weights"],
)
def test_weights_that_cannot_be_published_are_refused(project, capsys, options, said):
    assert publish(project, *options) == 2
    assert said in capsys.readouterr().err
    assert not (project / "results/evidence").exists()


def test_weights_that_are_not_there_yet_can_be_left_out(project, capsys):
    missing = "digits/resnet18/trades/seed0"
    assert publish(project, "--weights", STANDARD, "--weights", missing, "--allow-missing") == 0
    found = published(project)
    assert f"runs/{STANDARD}/model.safetensors" in found and not any(missing in path for path in found)


def test_too_much_for_git_is_refused_with_what_takes_how_much(project, capsys, monkeypatch):
    monkeypatch.setattr(evidence, "LIMIT", 900)
    assert publish(project, "--weights", STANDARD) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "the evidence of smoke would have" in lines[0]
    assert {line.split()[0] for line in lines[1:]} == {"runs", "weights", "evaluations", "checks"}
    assert not (project / "results/evidence").exists()


@pytest.mark.long
def test_evidence_of_another_scale_is_refused(project, capsys):
    assert publish(project) == 0
    folder = str(project / "results/evidence/smoke")
    assert moat(project, "report", "--scale", "paper", "--results", folder) == 2
    assert "is the evidence of scale smoke" in capsys.readouterr().err
    assert moat(project, "report") == 2


@pytest.mark.brief(keep=lambda case: (case["gone"], case["command"][0]) in (("rows", "report"), ("nothing", "draw")))
@pytest.mark.parametrize(
    "command",
    [["tabulate"], ["tabulate", "--cells"], ["draw", "--figure", "training", "--study", "unified"], ["report"]],
    ids=lambda command: " ".join(command[:2]),
)
@pytest.mark.parametrize("gone", ["rows", "all", "nothing"])
def test_what_shows_numbers_is_not_replaced_by_something_emptier(shown, tmp_path, capsys, command, gone):
    project = shutil.copytree(shown, tmp_path / "project")
    folder, scale = project / "results/smoke", ["--scale", "smoke"]
    shown = [path for part in ("tables", "figures") for path in (folder / part).iterdir()] + [folder / "report.html"]
    before = {path: path.read_bytes() for path in shown}
    if gone != "nothing":
        shutil.rmtree(folder / "evaluations" / STANDARD)
    if gone == "all":
        for part in ("runs", "checks", "evaluations"):
            shutil.rmtree(folder / part)
    capsys.readouterr()
    # Its lines are trainings' histories, which are still there.
    refused = gone == "all" or (gone == "rows" and command[0] != "draw")
    assert moat(project, *command, *scale) == (2 if refused else 0)
    said = capsys.readouterr().err
    assert ("is not written: it shows" in said) == refused
    assert {path: path.read_bytes() for path in shown} == before
    if refused:
        assert moat(project, *command, *scale, "--allow-missing") == 0


def test_a_cell_that_a_study_no_longer_has_is_no_loss(project):
    for each in (["tabulate"], ["tabulate", "--cells"], ["report"]):
        assert moat(project, *each, "--scale", "smoke") == 0
    shutil.rmtree(project / f"results/smoke/evaluations/{STANDARD}")
    scale = project / "config/scales/smoke.yaml"
    edit_yaml(scale, lambda content: content["include"].update(method=["pgd-at", "trades"]))
    for each in (["tabulate"], ["tabulate", "--cells"], ["report"]):
        assert moat(project, *each, "--scale", "smoke") == 0


@pytest.mark.long
def test_the_record_says_scale_and_studies(project):
    assert publish(project) == 0
    record = json.loads((project / "results/evidence/smoke/evidence.json").read_text())
    assert record == {"scale": "smoke", "studies": ["unified"]}
    assert pd.read_csv(project / "results/evidence/smoke/tables/cells.csv")["measured"].notna().any()
