"""The stand-in for sacct, between a sacct and a squeue that answer as those of a cluster do."""

import os
import subprocess
from pathlib import Path

import pytest

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


def test_snakemake_finds_it_before_the_clusters_own():
    """By the workflow itself, so that nobody has to remember it."""
    assert os.access(BIN / "sacct", os.X_OK)
    assert 'workflow/profiles/slurm/bin", *os.get_exec_path()' in (ROOT / "workflow/rules/common.smk").read_text()
