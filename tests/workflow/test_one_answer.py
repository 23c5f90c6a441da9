"""What is done, stale or missing: the dry run, `moat plan`, `moat doctor` and the page say the same, whatever happened.

Nothing may hang on the times of files, which an archive or a clone does not keep, or on Snakemake's own records.
"""

import os
import shutil
from collections import Counter

import pytest

from moat.commands import cli, doctor
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.config.status import Statuses
from moat.planning.status import plan
from moat.reporting import usage
from moat.reporting.results import Results

SCALE = "tiny"
RULES = {
    "run": "train", "evaluation": "evaluate", "check": "verify", "table": "tabulate", "figure": "draw",
    "cells": "cells", "page": "page",
}  # fmt: skip
TRADES = "digits/lenet5/trades/seed0"


def remove(*names):
    def change(workflow):
        for name in names:
            path = workflow.root / "results" / SCALE / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def another_recipe(workflow):
    workflow.edit("config/methods/trades.yaml", "beta: 6.0", "beta: 3.0")


def touch_tables(workflow):
    for path in (workflow.root / "results" / SCALE / "tables").iterdir():
        path.touch()


def take_evidence(workflow):
    """As where the results were lost, and what git kept was copied back: all but data and weights."""
    assert cli.main(["--project", str(workflow.root), "publish", "--scale", SCALE]) == 0
    shutil.rmtree(workflow.root / "results" / SCALE)
    shutil.copytree(workflow.root / "results/evidence" / SCALE, workflow.root / "results" / SCALE)


def equal_times(workflow):
    """As after unpacking an archive: no file is newer than another, and Snakemake knows nothing."""
    shutil.rmtree(workflow.root / ".snakemake")
    for path in workflow.root.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))


SHOWN_OF_TRADES = {"tabulate": 1, "draw": 1, "cells": 1, "page": 1}
ALL_SHOWN = {"tabulate": 2, "draw": 2, "cells": 1, "page": 1}
MEASURED = {"evaluate": 1, "verify": 1}
ALL_MADE = {"train": 3, "evaluate": 3, "verify": 3}
#: What happened -> what is made again, for the first time included.
STATES = {
    "fresh": (
        lambda workflow: shutil.rmtree(workflow.root / "results"),
        {**ALL_MADE, **ALL_SHOWN},
    ),
    "half done": (
        remove(f"runs/{TRADES}", f"evaluations/{TRADES}", f"checks/{TRADES}.json", "tables", "figures", "report.html"),
        {"train": 1, **MEASURED, **ALL_SHOWN},
    ),
    "finished": (lambda workflow: None, {}),
    "another recipe": (another_recipe, {"train": 1, **MEASURED, **SHOWN_OF_TRADES}),
    "an evaluation deleted": (remove(f"evaluations/{TRADES}"), {"evaluate": 1, **SHOWN_OF_TRADES}),
    "weights deleted": (remove(f"runs/{TRADES}/model.safetensors"), {"train": 1, **MEASURED, **SHOWN_OF_TRADES}),
    "a table deleted": (remove("tables/second-table.tex"), {"tabulate": 1, "cells": 1, "page": 1}),
    "tables touched": (touch_tables, {}),
    "evidence without weights": (take_evidence, {**ALL_MADE, **ALL_SHOWN}),
}


def expect_one_answer(workflow, again):
    planned = workflow.planned()
    made = {rule: count for rule, count in planned.items() if rule not in ("prepare", "fetch")}
    assert made == again
    project = Project(workflow.root)
    studies = project.config()["studies"]
    grid = build_grid(project, SCALE, studies)
    entries = plan(project, grid)
    assert Counter(RULES[entry["kind"]] for entry in entries if entry["again"]) == again
    counts = Counter(entry["status"] for entry in entries)
    (said,) = [each.message for each in doctor._results(project) if each.name == f"results {SCALE}"]
    assert said == ", ".join(f"{counts[status]} {status}" for status in ("done", "stale", "missing"))
    results = Results(workflow.root / "results", SCALE, project)
    by_rule = {rule["name"]: rule for rule in usage.summarise(grid, results, Statuses(results, grid, studies))["rules"]}
    for kind, rule in RULES.items():
        if rule in by_rule:
            own = Counter(entry["status"] for entry in entries if entry["kind"] == kind)
            assert {status: by_rule[rule][status] for status in ("done", "stale", "missing")} == {
                "done": own["done"], "stale": own["stale"], "missing": own["missing"],
            }, rule  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("state", STATES)
def test_the_four_say_the_same(workflow, state):
    change, again = STATES[state]
    change(workflow)
    expect_one_answer(workflow, again)


@pytest.mark.long
@pytest.mark.parametrize(
    "state", ["finished", "another recipe", "an evaluation deleted", "a table deleted", "weights deleted"]
)
def test_in_an_unpacked_archive_too(workflow, state):
    change, again = STATES[state]
    change(workflow)
    equal_times(workflow)
    expect_one_answer(workflow, again)


@pytest.mark.long
def test_what_was_deleted_is_made_again(workflow):
    results = workflow.root / "results" / SCALE
    numbers = (results / "metrics.json").read_text()
    remove(
        f"runs/{TRADES}", "evaluations/digits/lenet5/standard", "tables/first-table.csv", "figures/second-figure.pdf"
    )(workflow)
    equal_times(workflow)
    done = workflow.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    assert workflow.planned() == {}
    assert (results / "metrics.json").read_text() == numbers


@pytest.mark.long
def test_some_studies_have_files_of_their_own(workflow):
    """And leave those of all studies as they are."""
    results = workflow.root / "results" / SCALE
    whole = [results / name for name in ("report.html", "metrics.json", "tables/cells.csv", "tables/robustbench.json")]
    before = {path: path.read_bytes() for path in whole}
    chosen = ("--config", "studies=[first]")
    assert workflow.planned(*chosen) == {"cells": 1, "page": 1}
    done = workflow.snakemake(*chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in whole} == before
    page = (results / "report-first.html").read_text()
    assert "first-table" in page and "second-table" not in page
    assert "second" not in (results / "tables/cells-first.csv").read_text()
    assert workflow.planned() == workflow.planned(*chosen) == {}
