"""Each contender is timed in a process of its own, in turns."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchlib import timing
from moat.base.errors import MoatError

ROOT = Path(__file__).parents[2]


def test_calls_take_turns_in_processes_of_their_own(tmp_path):
    log, here = tmp_path / "log", []

    def call(name):
        here.append(name)
        with open(log, "a") as stream:
            stream.write(f"{name} {os.getpid()} {len(here)}\n")

    taken = timing.cpu_seconds({name: lambda name=name: call(name) for name in "ab"}, repeats=2, warm_up=1)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == ["a", "b"] * 3
    pids = {name: {line[1] for line in lines if line[0] == name} for name in "ab"}
    assert len(pids["a"]) == len(pids["b"]) == 1 and len(pids["a"] | pids["b"] | {str(os.getpid())}) == 3
    # The same process makes all calls of a contender, and nothing of them is left here.
    assert [line[2] for line in lines if line[0] == "a"] == ["1", "2", "3"] and here == []
    assert {name: len(values) for name, values in taken.items()} == {"a": 2, "b": 2}


def test_a_call_that_fails_is_an_error(capfd):
    def fails():
        raise ZeroDivisionError("on purpose")

    with pytest.raises(MoatError, match="traceback above"):
        timing.cpu_seconds({"fine": lambda: None, "fails": fails}, repeats=1)
    assert "on purpose" in capfd.readouterr().err


@pytest.mark.long
def test_forks_end_with_their_parent(tmp_path):
    code = (
        "import os\nfrom benchlib import timing\n"
        f"call = lambda: open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "timing.cpu_seconds({'one': call, 'two': lambda: os.kill(os.getppid(), 9)}, repeats=5)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks").returncode == -9
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.01)
