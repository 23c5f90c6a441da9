"""The plug-ins in CONTRIBUTING.md work as they are printed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from moat.config.grid import build_grid
from moat.config.project import Project
from moat.training.models import load_model

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def printed() -> dict[str, str]:
    """path -> content of every file that is shown: a path in backquotes and a colon, then a block."""
    return dict(re.findall(r"`((?:plugins|config)/[\w./-]+)`:\n\n```\w+\n(.*?)```", TEXT, re.S))


@pytest.fixture
def project(tiny):
    """The tiny project with the plug-ins of CONTRIBUTING.md."""
    for path, content in printed().items():
        file = tiny.root / path
        assert not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tiny


@pytest.mark.brief(keep=lambda case: case["method"] == "smoothed-pgd-at")
@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("smoothed-pgd-at", ("recipe", "loss", "smoothing"), 0.1),
        ("trades-average", ("model", "experts"), 3),
    ],
)
def test_a_printed_method_trains(project, tmp_path, method, key, value):
    project.change(epochs=1)
    assert project.train(tmp_path / "run", method=method) == 0
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    for part in key:
        found = found[part]
    assert found == value
    assert len(getattr(load_model(tmp_path / "run"), "experts", ())) == (3 if "experts" in key else 0)


def test_its_own_parameter_is_checked(project, tmp_path, capsys):
    recipe = project.root / "config/methods/smoothed-pgd-at.yaml"
    recipe.write_text(recipe.read_text().replace("smoothing: 0.1", "smoothing: 1.5"))
    assert project.train(tmp_path / "run", method="smoothed-pgd-at") == 2
    said = capsys.readouterr().err
    assert "smoothed-pgd-at.yaml: loss.smoothing: 1.5" in said and "SmoothedPgdAt.PARAMETERS" in said


@pytest.mark.long
def test_the_row_that_it_names_makes_the_study_ask_for_it(project):
    row = re.search(r"`(\{label: PGD-AT smoothed.*?\})`", TEXT)[1]
    study = project.root / "config/studies/unified.yaml"
    content = yaml.safe_load(study.read_text())
    content["tables"]["leaderboard"]["rows"][2]["points"].append(yaml.safe_load(row))
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    asked = {(run.arch, run.method) for run in build_grid(Project(project.root), "smoke", ["unified"]).runs}
    assert ("resnet18", "smoothed-pgd-at") in asked


def test_every_place_exists():
    """Files and names in the table of what to write, but those in pointed brackets."""
    for path in re.findall(r"`((?:src|tests|config|docs|benchmarks)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists() or path in printed(), path
