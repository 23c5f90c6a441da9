"""Files are complete or absent, and a kill in the midst of writing leaves nothing for good."""

import os
import signal
import subprocess
import sys

import pytest

from moat.base.errors import ConfigError
from moat.base.files import atomic_path, check_writable, write_text

WRITER = """
import sys, time
from moat.base.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("on", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """Another process, in the midst of writing a file."""
    path = tmp_path / "table[1].csv"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    process.path = path
    assert process.stdout.readline() == "on\n"
    yield process
    process.kill()
    process.wait()


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_what_a_killed_writer_left_goes_when_the_file_is_written_again(writer, tmp_path):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert list(files(tmp_path).values()) == ["half"]
    write_text(writer.path, "whole")
    assert files(tmp_path) == {writer.path.name: "whole"}


@pytest.mark.parametrize("disturb", [lambda path: write_text(path, "whole"), check_writable], ids=["write", "check"])
def test_what_a_living_writer_holds_stays(writer, tmp_path, disturb):
    disturb(writer.path)
    assert "half" in files(tmp_path).values()


@pytest.mark.parametrize("other", [".other.csv.abc.part", ".table[1].csv.part", "table[1].csv.abc.part"])
def test_other_files_stay(tmp_path, other):
    (tmp_path / other).write_text("mine")
    write_text(tmp_path / "table[1].csv", "whole")
    assert files(tmp_path) == {other: "mine", "table[1].csv": "whole"}


def test_the_file_may_be_replaced_in_the_block(tmp_path):
    """As hard links are made."""
    (tmp_path / "source").write_text("linked")
    with atomic_path(tmp_path / "target") as temporary:
        temporary.unlink()
        os.link(tmp_path / "source", temporary)
    assert files(tmp_path) == {"source": "linked", "target": "linked"}


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; the name of a file is needed"):
        check_writable(tmp_path)
    assert files(tmp_path) == {}
