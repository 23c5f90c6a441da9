"""docs/evidence.md is true: it names every claim, and its commands ask for what the scales have."""

import re
import subprocess
from pathlib import Path

import pytest

from moat.config import paths
from moat.config.grid import build_grid
from moat.config.project import Project

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/evidence.md").read_text()
PROJECT = Project(ROOT)
# Measured beside what the studies ask for.
EXTRA = {"results/undefended-jpeg/evaluations/cifar10-jpeg/resnet18/standard/seed0/tiny.parquet"}


def asked() -> dict[str, list[str]]:
    """Scale -> the files that the page's commands ask for, as bash writes them out."""
    block = re.search(r"^```bash\n(export MOAT_MIRROR.*?)^```$", TEXT, re.S | re.M)[1]
    script = "snakemake() { shift 4; printf '%s ' \"$@\"; echo; }\nmoat() { :; }\n" + block
    lines = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, list[str]] = {}
    for file in " ".join(lines).replace("--", " ").split():
        found.setdefault(Path(file).parts[1], []).append(file)
    return found


ASKED = asked()


def test_every_claim_is_named():
    named = set(re.findall(r"`([a-z0-9-]+)`", TEXT))
    # Two of one name, the second by its ending only.
    named |= {"mocse-lifts-corruptions" + each for each in named if each.startswith("-")}
    assert not set(PROJECT.claims()) - named


def test_what_is_called_open_for_its_kind_has_that_kind():
    (row,) = re.findall(r"^\| (.*?) \| values of defended nets", TEXT, re.M)
    kinds = {name: PROJECT.claims()[name].get("kind") for name in re.findall(r"`([^`]+)`", row)}
    assert kinds == {name: "value" for name, spec in PROJECT.claims().items() if spec.get("kind") == "value"}


@pytest.mark.long
@pytest.mark.parametrize("scale", ["paper", "undefended-jpeg", "small-jpeg"])
def test_the_commands_ask_for_what_the_scale_has(scale):
    grid = build_grid(PROJECT, scale, PROJECT.config()["studies"] if scale != "paper" else ["hybrid"])
    known = {str(paths.evaluation(scale, each.run, each.suite)) for each in grid.evaluations}
    known |= {str(paths.checks(scale, run)) for run in grid.checks}
    assert not set(ASKED[scale]) - known - EXTRA
