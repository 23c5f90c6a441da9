"""What every command owes the shell, and what `moat doctor` prints."""

import subprocess
import sys
from pathlib import Path

import pytest

from moat.commands import doctor
from moat.commands.cli import main

ROOT = Path(__file__).parents[2]


def test_a_reader_that_goes_away_ends_a_command_quietly():
    """`moat plan --json | head`: there is more to write than a pipe holds."""
    command = [sys.executable, "-m", "moat", "--project", str(ROOT), "plan", "--scale", "paper", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"{"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_broken_pipe_is_no_quiet_end(monkeypatch):
    def fails(arguments):
        raise BrokenPipeError("a pipe of the command's own")

    monkeypatch.setattr("moat.commands.doctor.run", fails)
    with pytest.raises(BrokenPipeError, match="of the command's own"):
        main(["--project", str(ROOT), "doctor"])


@pytest.fixture
def stale(monkeypatch):
    """63 stale results at the scale mini, none elsewhere."""

    def plan(grid, root):
        count = 63 if grid.scale == "mini" else 0
        return [{"status": "stale", "path": f"run{number}", "stale": ["nets", "engine"]} for number in range(count)]

    monkeypatch.setattr(doctor, "plan", plan)
    monkeypatch.setattr(doctor, "EXAMINERS", (doctor._results,))


@pytest.mark.parametrize(
    ("options", "listed", "last"),
    [
        ([], 3, "and 60 more; `moat doctor --verbose` lists them"),
        (["--verbose"], 63, "run62: nets, engine changed since"),
    ],
)
def test_doctor_shows_the_first_stale_results_and_counts_the_rest(stale, capsys, options, listed, last):
    assert main(["--project", str(ROOT), "doctor", *options]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index("problem  results mini         0 done, 63 stale, 0 missing")
    end = lines.index("ok       results paper        0 done, 0 stale, 0 missing")
    assert [line for line in lines[start:end] if line.startswith("run")][0] == "run0: nets, engine changed since"
    assert sum(line.startswith("run") for line in lines) == listed
    assert lines[end - 1] == last


@pytest.mark.parametrize(
    ("there", "said"),
    [(False, "no such folder; data.mirror or MOAT_MIRROR must name one"), (True, "there is no SHA256SUMS there")],
)
def test_doctor_tells_a_mirror_that_is_not_there(tmp_path, monkeypatch, capsys, there, said):
    monkeypatch.setattr(doctor, "EXAMINERS", (doctor._mirror,))
    monkeypatch.setenv("MOAT_MIRROR", str(mirror := tmp_path / "mirror"))
    if there:
        mirror.mkdir()
    assert main(["--project", str(ROOT), "doctor"]) == 0
    assert f"{mirror}: {said}" in capsys.readouterr().out
