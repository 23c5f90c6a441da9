"""A small project of its own, run once from nothing to its report by the real Snakemake."""

import shutil

import pytest
import small_project
from small_project import Workflow


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workflow:
    """The small project, run to its report."""
    studies = {"first": small_project.study("standard", "pgd-at"), "second": small_project.study("pgd-at", "trades")}
    workflow = small_project.make(tmp_path_factory.mktemp("workflow") / "project", studies=studies)
    done = workflow.snakemake("--resources", "gpu=2")
    logs = "\n".join(f"== {path}\n{path.read_text()[-2000:]}" for path in (workflow.root / "logs").rglob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    (workflow.root / "snakemake.log").write_text(done.stdout + done.stderr)
    return workflow


@pytest.fixture
def workflow(finished, tmp_path) -> Workflow:
    """A copy of the finished project, times and Snakemake's records included, to be changed."""
    shutil.copytree(finished.root, tmp_path / "project", symlinks=True)
    return Workflow(tmp_path / "project")
