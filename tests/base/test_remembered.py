"""What was computed from a file is used again as long as the file stays as it is, and no longer."""

import os

import pytest

from moat.base import remembered
from moat.base.files import hash_file
from moat.base.remembered import Remembered, hash_once


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A folder to work in, and the files that are hashed in it."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remembered, "hash_file", lambda path: (calls.append(path.name), hash_file(path))[1])
    monkeypatch.setattr(remembered, "LARGE", 1000)
    monkeypatch.setattr(remembered, "SETTLED", -(10**18))
    (tmp_path / "work").mkdir()
    (tmp_path / "data").write_bytes(b"a" * 1000)
    return calls


def test_a_large_file_is_hashed_once(counted, tmp_path):
    assert [hash_once("data"), hash_once(tmp_path / "data")] == [hash_file("data")] * 2
    assert counted == ["data"]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"b" * 1000),
        lambda path: path.write_bytes(b"a" * 1001),
        lambda path: os.utime(path, ns=(1, 1)),
        # Another file with the same times and size.
        lambda path: (path.rename("old"), path.write_bytes(b"c" * 1000), os.utime(path, ns=(5, 5))),
    ],
)
def test_a_file_that_changed_is_hashed_again(counted, tmp_path, change):
    path = tmp_path / "data"
    os.utime(path, ns=(5, 5))
    hash_once(path)
    change(path)
    assert hash_once(path) == hash_file(path) and counted == ["data", "data"]


def test_a_small_file_and_one_just_written_are_hashed_every_time(counted, tmp_path, monkeypatch):
    (tmp_path / "small").write_bytes(b"a" * 999)
    monkeypatch.setattr(remembered, "SETTLED", 3600 * 10**9)
    for name in ("small", "data", "small", "data"):
        hash_once(name)
    assert counted == ["small", "data", "small", "data"]


def test_where_there_is_no_folder_for_it_nothing_is_written(counted, tmp_path):
    (tmp_path / "work").rmdir()
    assert hash_once("data") == hash_once("data") == hash_file("data")
    assert counted == ["data", "data"] and os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": "other", "files": {}}', '{"version": "1", "files": 3}']
)
def test_what_cannot_be_read_is_computed_again(counted, tmp_path, content):
    (tmp_path / "work/values.json").write_text(content)
    values = Remembered("values.json", "1")
    assert values.get(tmp_path / "data", [1]) is None
    values.put(tmp_path / "data", [1], ["value"])
    values.save()
    assert Remembered("values.json", "1").get(tmp_path / "data", [1]) == ["value"]
    assert Remembered("values.json", "1").get(tmp_path / "data", [2]) is None
    assert Remembered("values.json", "2").get(tmp_path / "data", [1]) is None


def test_a_folder_that_cannot_be_written_fails_nothing(counted, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembered, "write_json", full)
    assert hash_once("data") == hash_file("data")
