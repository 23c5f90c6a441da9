"""config/README.md is true: its example is a study that works, and it has every key of every file."""

import re
from pathlib import Path

import pytest
import yaml

from moat.config.grid import build_grid
from moat.config.project import Project
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "config" / "README.md").read_text()
# Section -> schema.
SECTIONS = {
    "config.yaml": "config",
    "scales/&lt;name&gt;.yaml": "scale",
    "studies/&lt;name&gt;.yaml": "study",
    "claims.yaml": "claims",
    "methods/&lt;name&gt;.yaml": "method",
    "datasets/&lt;name&gt;.yaml": "dataset",
    "attacks.yaml": "attacks",
    "suites.yaml": "suites",
    "probes.yaml": "probes",
    "bands.yaml": "bands",
    "planner.yaml": "planner",
}


def section(title: str) -> str:
    return re.search(rf"^### {re.escape(title)}$(.*?)(?=^###? |\Z)", TEXT, re.S | re.M)[1]


def block(language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)^```$", TEXT, re.S | re.M)[1]


def keys(schema) -> set[str]:
    """The names of all properties, at every depth."""
    if isinstance(schema, list):
        return set().union(*map(keys, schema))
    if not isinstance(schema, dict):
        return set()
    inner = schema.get("properties", {})
    return {*inner, *keys(list(inner.values())), *keys([value for key, value in schema.items() if key != "properties"])}


@pytest.fixture
def example(tmp_path):
    """A copy of the project's configuration with the README's study in it."""
    copy_project(tmp_path)
    (tmp_path / "config" / "studies" / "example.yaml").write_text(block("yaml"))
    (tmp_path / "config" / "published" / "example.csv").write_text(block("csv"))
    return Project(tmp_path)


def test_the_worked_example_has_the_cells_that_the_readme_lists(example):
    (table,) = build_grid(example, "paper", ["example"]).tables
    found = [
        [each.row, each.column, each.metric, each.protocol, "" if each.published is None else f"{each.published:g}"]
        for cell in table.cells
        for each in cell.each()
    ]
    listed = re.search(r"^\| row \| column \| metric .*?\n\n", TEXT, re.S | re.M)[0].splitlines()[2:]
    assert found == [[part.strip() for part in line.strip("|").split("|")] for line in filter(None, listed)]
    assert {run.seed for run in table.runs} == {0, 1}


def test_the_worked_example_names_its_stand_ins(example):
    (table,) = build_grid(example, "smoke", ["example"]).tables
    assert table.columns[0] == "digits (for CIFAR-10) / Std"
    assert f"`{table.columns[0]}`" in TEXT


@pytest.mark.parametrize(("title", "schema"), SECTIONS.items())
def test_every_key_is_explained(title, schema):
    declared = keys(yaml.safe_load((ROOT / "workflow" / "schemas" / f"{schema}.schema.yaml").read_text()))
    named = {part for code in re.findall(r"`([^`]+)`", section(title)) for part in re.split(r"[^\w]+", code)}
    assert not declared - named, f"keys of {schema}.schema.yaml that config/README.md does not explain"


def test_every_schema_has_a_section():
    files = {path.name.removesuffix(".schema.yaml") for path in (ROOT / "workflow" / "schemas").glob("*.schema.yaml")}
    assert files == set(SECTIONS.values())


def test_links_lead_somewhere():
    headings = re.findall(r"^#+ (.*)$", TEXT, re.M)
    anchors = {re.sub(r"&\w+;|[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (ROOT / "config" / target.partition("#")[0]).exists(), target
