"""The stand-in for sacct, between a sacct and a squeue that answer as those of a cluster do."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_project

from moat.base.errors import ConfigError
from moat.pipeline import slurm

ROOT = Path(__file__).parents[2]
BIN = ROOT / "workflow/profiles/slurm/bin"
ASKED = ["sacct", "-X", "--parsable2", "--noheader", "--format=JobIdRaw,State", "--name", "a-run"]


@pytest.fixture
def ask(tmp_path):
    def ask(command, *, sacct: str, squeue: str) -> subprocess.CompletedProcess:
        for name, script in {"sacct": sacct, "squeue": squeue}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        path = f"{BIN}:{tmp_path}:{os.environ['PATH']}"
        return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=30)

    return ask


@pytest.mark.parametrize(
    ("sacct", "squeue", "code", "said"),
    [
        ("echo '7|COMPLETED'", "echo wrong", 0, "7|COMPLETED\n"),
        ("exit 0", "echo wrong", 0, ""),
        ("echo disabled >&2; exit 1", "echo '7|RUNNING'", 0, "7|RUNNING\n"),
        ("echo disabled >&2; exit 1", 'echo "$@"', 0, "--states=all --noheader --format=%i|%T --name a-run\n"),
        ("exit 1", "exit 1", 1, ""),
    ],
    ids=["accounting", "accounting knows nothing", "no accounting", "the question", "controller away"],
)
def test_it_answers_where_one_of_them_does(ask, sacct, squeue, code, said):
    done = ask(ASKED, sacct=sacct, squeue=squeue)
    assert (done.returncode, done.stdout) == (code, said)


def test_another_question_is_not_squeues(ask):
    done = ask(["sacct", "-nu", "root", "-o", "Account"], sacct="exit 1", squeue="echo wrong")
    assert (done.returncode, done.stdout) == (1, "")


def test_the_plugin_finds_it_before_the_clusters_own(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    slurm.start(SimpleNamespace(array_jobs=None, pass_command_as_script=True), ROOT)
    assert shutil.which("sacct") == str(BIN / "sacct")


@pytest.mark.parametrize(
    ("arrays", "as_script", "refused"), [("all", True, True), ("all", False, False), (None, True, False)]
)
def test_arrays_that_would_run_one_job_again_and_again_are_refused(monkeypatch, arrays, as_script, refused):
    monkeypatch.setenv("PATH", "/usr/bin")
    settings = SimpleNamespace(array_jobs=arrays, pass_command_as_script=as_script)
    with pytest.raises(ConfigError, match="--slurm-array-jobs=all: .*first job") if refused else nullcontext():
        slurm.start(settings, ROOT)


def test_snakemake_refuses_arrays_before_it_submits_anything(tmp_path):
    """With the profile as it is, on a cluster that would write down what is submitted."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    project = small_project.make(tmp_path / "project", studies={"first": small_project.study("standard")})
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "sacct"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/asked\n')
        (programs / name).chmod(0o755)
    environment = {**project.environment(), "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/slurm", "--slurm-array-jobs=all"],
        cwd=project.root, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0 and "--slurm-array-jobs=all: with slurm-pass-command-as-script" in done.stderr
    assert "sbatch" not in (tmp_path / "asked").read_text()
