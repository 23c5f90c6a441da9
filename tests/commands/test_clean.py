"""`moat clean` removes what only saves time, and nothing that a process is working on."""

import fcntl

import pytest

from moat.commands.cli import main
from project_copy import copy_project


@pytest.fixture
def here(tmp_path, monkeypatch):
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    for file in (
        "work/results/mini/runs/a/checkpoint.pt",
        "work/results/paper/runs/a/lock",
        "work/hashes.json",
        "results/mini/runs/a/run.json",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    return tmp_path


def left(here):
    return {str(path.relative_to(here)) for name in ("work", "results") for path in (here / name).rglob("*.*")}


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ([], {"work/results/mini/runs/a/checkpoint.pt", "work/hashes.json"}),
        (["--scale", "mini"], {"work/results/mini/runs/a/checkpoint.pt"}),
        (["--scale", "quickstart"], set()),
    ],
    ids=["all", "a scale", "a scale without any"],
)
def test_work_is_removed_and_results_stay(here, options, removed, capsys):
    before = left(here)
    assert main(["clean", *options]) == 0
    assert before - left(here) == removed
    assert "removed" in capsys.readouterr().out


def test_what_a_process_works_on_is_left(here, capsys):
    before = left(here)
    with open(here / "work/results/paper/runs/a/lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["clean"]) == 2
        assert "work/results/paper/runs/a/lock: another process is at work there" in capsys.readouterr().err
        assert left(here) == before
        assert main(["clean", "--scale", "mini"]) == 0
    assert main(["clean"]) == 0 and not (here / "work").exists()


def test_an_unknown_scale_is_named(here, capsys):
    assert main(["clean", "--scale", "papr"]) == 2
    assert "did you mean 'paper'?" in capsys.readouterr().err
