"""The mini run's committed tables and page are those that today's code makes of its committed rows and records."""

import shutil
from pathlib import Path

import pytest

from moat.commands.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_mini_run_is_what_todays_code_makes_of_it(tmp_path):
    committed, again = ROOT / "results/evidence/mini", tmp_path / "results/evidence/mini"
    shutil.copytree(committed, again, ignore=shutil.ignore_patterns("tables", "report.html", "metrics.json", "data"))
    for command in (["tabulate"], ["tabulate", "--cells"], ["report"]):
        assert main(["--project", str(ROOT), *command, "--results", str(again)]) == 0
    for path in (*sorted((committed / "tables").iterdir()), committed / "metrics.json", committed / "report.html"):
        assert (again / path.relative_to(committed)).read_bytes() == path.read_bytes(), path.name
