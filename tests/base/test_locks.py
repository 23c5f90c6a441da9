"""Locks: one process at a time, and one warning where the file system has none."""

import errno
import fcntl
import logging
import os
import threading
import time

import pytest

from moat.base import files, locks
from moat.base.errors import ConfigError
from moat.base.locks import locked, only_one, take
from moat.data.fetch import fetch
from moat.machine import gpu_lease
from moat.machine import locks as machine_locks
from moat.machine.gpus import Gpu


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def without(request, monkeypatch, caplog):
    """A file system without locks."""

    def flock(file, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    locks.warn_without_locks.cache_clear()
    yield
    said = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert len(said) == 1 and f"no locks on this file system ({os.strerror(request.param)})" in said[0]


def test_without_locks_a_gpu_is_leased(without, tmp_path):
    gpus = [Gpu("a", "a")]
    with gpu_lease.lease(gpus, folder=machine_locks.make_folder(tmp_path / "locks"), environ={}) as slot:
        assert slot.name == "a slot 0"
    with gpu_lease.lease(gpus, folder=tmp_path / "locks", environ={}) as slot:
        assert slot.name == "a slot 0"
    assert list(gpu_lease.holders(gpus, slots_per_gpu=1, folder=tmp_path / "locks").values()) == [None]


def test_without_locks_data_is_fetched_and_a_run_has_its_turn(without, tmp_path):
    spec = {"name": "digits", "files": []}
    assert fetch(spec, tmp_path / "into").exists()
    with only_one(tmp_path / "lock", waiting="another process trains"), locked(tmp_path / "x", waiting="another"):
        files.write_text(tmp_path / "x", "written")
    assert (tmp_path / "x").read_text() == "written"


def test_another_fault_is_one(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), only_one(tmp_path / "lock", waiting="another"):
        pass


def test_doctor_can_ask_for_locks(tmp_path, monkeypatch):
    assert locks.missing(tmp_path) is None

    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert locks.missing(tmp_path) == "No locks available"


def test_who_waits_says_so_once_and_has_its_turn(tmp_path, caplog):
    path, order, inside = tmp_path / "lock", [], threading.Event()

    def second():
        inside.wait()
        with only_one(path, waiting="another process fetches"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with only_one(path, waiting="nobody"):
        inside.set()
        while "another process fetches" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and caplog.text.count("waiting for it") == 1


def test_a_lock_file_is_no_link(tmp_path):
    (tmp_path / "other").write_text("content")
    (tmp_path / ".x.lock").symlink_to("other")
    with pytest.raises(ConfigError, match="cannot be written here"), locked(tmp_path / "x", waiting="another"):
        pass
    assert (tmp_path / "other").read_text() == "content"


def test_a_shared_lock_can_be_held_twice(tmp_path):
    opened = [os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(3)]
    assert [take(file, shared=True, wait=False) for file in opened] == [True, True, True]
    os.close(opened[0])
    assert not take(opened[1], wait=False)
