"""docs/your-own-images.md and docs/your-own-method.md: followed to the letter, in a copy of the project."""

import re
import shlex
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from moat.base.files import read_json
from moat.commands.cli import main
from moat.config.grid import build_grid
from moat.config.project import Project
from project_copy import copy_project, plugins_forgotten

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def files(page: str, language: str) -> dict[str, str]:
    """The blocks of a page by the file's name in the sentence before each."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(rf"`([\w./-]+)`:\n\n```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return dict(found)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    with plugins_forgotten():
        yield tmp_path


def write(found: dict[str, str]) -> None:
    for name, text in found.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def run_all(page: str) -> None:
    for line in (line for block in blocks(page, "console") for line in block.splitlines()):
        assert main(shlex.split(line)[1:]) == 0, line


def draw(name: str, size: tuple[int, int] = (8, 8), color: int = 0) -> None:
    """A noisy picture of one colour under this name."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).randint(0, 60, (size[1], size[0], 3))
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + color).astype(np.uint8)).save(name)


@pytest.mark.long
def test_own_images_are_trained_attacked_and_checked(folder):
    for number in range(30):
        draw(f"photos/cat/{number}.png", color=20)
        draw(f"photos/dog/{number}.png", color=160)
    write(files("your-own-images.md", "yaml"))
    run_all("your-own-images.md")
    rows = pd.read_parquet("my-run/quick.parquet")
    assert len(rows[rows["setting"] == "clean"]) == 12 and read_json("my-run/checks.json")["n"] == 12
    runs = build_grid(Project(folder), "photos", ["unified"]).runs
    assert {run.dataset for run in runs} == {"photos"} and "dramoe" in {run.method for run in runs}


@pytest.mark.long
def test_an_own_method_is_trained_attacked_and_gets_a_row(folder):
    page = "your-own-method.md"
    code, configuration = files(page, "python"), files(page, "yaml")
    assert len(code) == 1 and len(configuration) == 2
    write(code | configuration)
    study = Path("config/studies/unified.yaml")
    first = "          - {label: standard, method: standard}\n"
    assert first in study.read_text()
    study.write_text(study.read_text().replace(first, first + blocks(page, "text")[0], 1))
    run_all(page)
    assert read_json("my-run/run.json")["recipe"]["noise"] == {"std": 0.1}
    assert set(pd.read_parquet("my-run/quick.parquet")["setting"]) >= {"clean", "pgd10"}
    runs = build_grid(Project(folder), "mine", ["unified"]).runs
    assert {run.method for run in runs} == {"pgd-at", "trades", "noisy-pgd-at"}


@pytest.mark.parametrize(
    ("written", "said"),
    [("noise: {std: 0.1}", "noise: {std: 2}"), ("noise: {std: 0.1}", "noise: {sdt: 0.1}")],
    ids=["out of range", "misspelt"],
)
def test_a_wrong_parameter_of_an_own_method_is_named(folder, capsys, written, said):
    page = "your-own-method.md"
    write(files(page, "python") | files(page, "yaml"))
    recipe = Path("config/methods/noisy-pgd-at.yaml")
    recipe.write_text(recipe.read_text().replace(written, said))
    named = ["--dataset", "digits", "--arch", "resnet18", "--method", "noisy-pgd-at", "--seed", "0"]
    assert main(["train", *named, "--scale", "quickstart", "--out", "my-run"]) == 2
    message = capsys.readouterr().err
    assert "config/methods/noisy-pgd-at.yaml" in message and "noise" in message
    assert len(message.strip().splitlines()) == 1
