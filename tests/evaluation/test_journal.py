"""One file holds all that an evaluation has measured so far; damage, full disks and second processes lose no more."""

import errno
import os
import shutil
import threading
import time

import pandas as pd
import pytest
from journals import MARK, lose, shards

from moat.base import locks
from moat.base.errors import ConfigError, DataError
from moat.evaluation import journal
from moat.evaluation.journal import Journal


def rows(n: int) -> pd.DataFrame:
    names = pd.Series([None, "fgsm"] * n, dtype="str")
    return pd.DataFrame({"setting": "pgd", "index": range(2 * n), "confidence": 0.1 * n, "misclassified_by": names})


def write(path, names="abcd") -> list[str]:
    """Have these shards measured; returns those that were not there."""
    measured = []
    with Journal(path) as opened:
        for name in names:

            def measure(name=name):
                measured.append(name)
                return rows(ord(name) - 90), {"flag": name}

            entry, before = opened.shard({"part": name, "identity": {"model": 1}}, measure)
            assert before == (name not in measured) and entry.flags == {"flag": name}
            pd.testing.assert_frame_equal(entry.rows, rows(ord(name) - 90))
        opened.tidy()
    return measured


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "work" / "trust.journal"
    assert write(path) == ["a", "b", "c", "d"]
    return path


def starts(path) -> list[int]:
    content, found = path.read_bytes(), [0]
    while (next_one := content.find(MARK, found[-1] + 1)) > 0:
        found.append(next_one)
    return [*found, len(content)]


def test_all_that_is_measured_is_one_file(path):
    assert os.listdir(path.parent) == [path.name] and len(shards(path)) == 4
    whole = path.read_bytes()
    assert write(path) == [] and path.read_bytes() == whole


@pytest.mark.parametrize("name", "abcd")
def test_a_record_cut_short_costs_that_one(path, name):
    whole, number = path.read_bytes(), "abcd".index(name)
    start, end = starts(path)[number : number + 2]
    for length in (1, 8, 20, 50, end - start - 1):
        path.write_bytes(whole[: start + length] + whole[end:])
        assert write(path) == [name], length
        # Measured again it stands at the end, once, and what was cut short is gone.
        assert sorted(map(len, shards(path))) == [14, 16, 18, 20] and path.read_bytes().count(MARK) == 4


@pytest.mark.long
def test_wrong_bytes_cost_the_records_that_they_hit(path):
    whole, bounds = path.read_bytes(), starts(path)
    for position in range(0, len(whole), max(1, len(whole) // 97)):
        hit = next(n for n in range(4) if position < bounds[n + 1])
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        assert write(path) == ["abcd"[hit]], position


@pytest.mark.parametrize("content", [b"", b"no journal", MARK * 3, MARK + b"\xff" * 8, b"PAR1" * 100])
def test_a_file_of_something_else_is_measured_over(path, content):
    path.write_bytes(content)
    assert write(path) == ["a", "b", "c", "d"] and write(path) == []


def test_what_is_not_used_any_more_is_dropped(path):
    lose(path, 0)
    assert write(path, "bd") == [] and len(shards(path)) == 2
    assert write(path) == ["a", "c"]


def test_a_full_disk_keeps_what_was_measured(path, monkeypatch):
    before, write_some = path.read_bytes(), os.write

    def full(file, content):
        if len(content) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_some(file, content[:100])

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", full)
        with pytest.raises(DataError, match=r"trust.journal: no space left .*; what was measured before is kept"):
            write(path, "abcdef")
    assert path.read_bytes() == before
    assert write(path, "abcdef") == ["e", "f"]


def test_a_disk_that_is_full_once_it_is_asked_to_keep_its_word(path, monkeypatch):
    def full(file):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(journal, "SYNC_SECONDS", 0)
    monkeypatch.setattr(journal.os, "fsync", full)
    with pytest.raises(DataError, match="no space left"):
        write(path, "abcde")


def test_tidying_up_on_a_full_disk_fails_no_evaluation(path, monkeypatch):
    def full(path, content):
        raise DataError(f"{path}: no space left on the device")

    monkeypatch.setattr(journal, "write_bytes", full)
    assert write(path, "ab") == [] and len(shards(path)) == 4


@pytest.mark.parametrize(("seconds", "most"), [(3600, 1), (0, 51)])
def test_the_disk_is_waited_for_by_time_not_by_shard(tmp_path, monkeypatch, seconds, most):
    calls, sync = [], os.fsync
    monkeypatch.setattr(journal, "SYNC_SECONDS", seconds)
    monkeypatch.setattr(journal.os, "fsync", lambda file: (calls.append(file), sync(file))[1])
    write(tmp_path / "journal", map(chr, range(97, 147)))
    assert len(calls) == most


def test_a_second_process_waits_and_measures_nothing(path):
    """Locks are of open files: another one of this process stands for another process."""
    found = []
    with Journal(path) as opened:
        second = threading.Thread(target=lambda: found.extend(write(path, "abcde")))
        second.start()
        time.sleep(0.05)
        opened.shard({"part": "e", "identity": {"model": 1}}, lambda: (rows(ord("e") - 90), {"flag": "e"}))
        # The lock that it waits for is of a file that is replaced before it gets it.
        shutil.copy(path, path.with_suffix(".other"))
        lose(path.with_suffix(".other"), 0)
        os.replace(path.with_suffix(".other"), path)
        assert not found
    second.join(60)
    assert found == ["a"]


def test_without_locks_it_is_written_all_the_same(path, monkeypatch, caplog):
    def without(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", without)
    locks.warn_without_locks.cache_clear()
    assert write(path, "abcde") == ["e"]
    assert "no locks on this file system (No locks available)" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/journal: cannot be written here"):
        Journal(tmp_path / "file" / "journal")
