"""What a job writes down of its CPU time and memory."""

import os
import subprocess
import sys
import time

import pytest

from moat.machine import usage
from moat.machine.usage import Usage

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_children_count():
    began = Usage()
    subprocess.run([sys.executable, "-c", f"{BUSY}\nlarge = b'x' * 300_000_000"], check=True)
    found = began.record()
    assert found["cpu_seconds"] >= 0.25 and found["peak_host_memory_bytes"] >= 300_000_000


def test_a_fork_starts_at_nothing():
    """As a warm job does, whose parent has imported torch."""
    burn(0.3)
    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        os.write(writer, str(Usage().record()["cpu_seconds"]).encode())
        os._exit(0)
    os.waitpid(process, 0)
    assert float(os.read(reader, 100)) < 0.2


def test_attempts_that_were_stopped_are_added():
    began = Usage()
    began.add(1000.0, 2**50)
    began.add(1.5)
    burn(0.1)
    found = began.record()
    assert 1001.6 <= found["cpu_seconds"] < 1100 and found["peak_host_memory_bytes"] == 2**50
    resumed = Usage()
    resumed.add(**found)
    assert resumed.record()["cpu_seconds"] >= found["cpu_seconds"]


@pytest.mark.parametrize("content", ["", "VmHWM:", "VmHWM: many kB", "Name: a: b"])
def test_a_system_without_that_file_is_asked_otherwise(tmp_path, content):
    status = tmp_path / "status"
    status.write_text(content)
    assert usage._own_peak(status) > 1000 and usage._own_peak(tmp_path / "none") > 1000
