"""A dozen faults, each kind once; `make faults N=200` injects more."""

import os
import time

import pytest
from harness import Harness

import faults
from moat.pipeline import snakemake_repair


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("faults"), seed=1)


@pytest.mark.long
@pytest.mark.parametrize("fault", faults.KINDS, ids=lambda fault: fault.__name__)
def test_after_a_fault_the_same_command_gives_the_same_results(harness, fault):
    if fault is faults.full_disk and not harness.can_fill_a_disk:
        pytest.skip("this user may not mount a tmpfs, which a full disk needs")
    # Two models and the data, two tables of rows, the table in three forms, the cells, the numbers, the claims.
    assert len(harness.undisturbed) >= 10
    # One that comes too late meets no occasion.
    assert any(harness.inject(fault) for _ in range(4))


def test_dead_locks_go_and_those_of_the_living_stay(tmp_path):
    lock = tmp_path / "locks/0.output.lock"
    lock.parent.mkdir()
    lock.write_text("a\n")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        # The living one: present as long as the pipe is open.
        os.close(writing)
        snakemake_repair.clear_dead_locks(tmp_path)
        lock.write_text("mine\n")
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    while not lock.exists() or lock.read_text() != "mine\n":
        time.sleep(0.01)
    assert snakemake_repair.clear_dead_locks(tmp_path) == []
    assert lock.exists()
    os.close(writing)
    os.waitpid(child, 0)


def test_a_dead_lock_is_removed(tmp_path):
    lock = tmp_path / "locks/0.input.lock"
    lock.parent.mkdir()
    lock.write_text("a\n")
    assert snakemake_repair.clear_dead_locks(tmp_path) == [lock]
    assert not lock.exists()


def _parquet(path):
    import pandas as pd

    pd.DataFrame({"a": range(100)}).to_parquet(path)


def _safetensors(path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.arange(100.0), "b": torch.zeros(3)}, path, metadata={"k": "v"})


def _json(path):
    path.write_text('{\n  "a": 1\n}\n')


@pytest.mark.parametrize(
    ("name", "make"), [("r.parquet", _parquet), ("m.safetensors", _safetensors), ("r.json", _json)]
)
def test_a_file_cut_short_anywhere_is_damaged(tmp_path, name, make):
    path = tmp_path / name
    assert not snakemake_repair.is_damaged(path)
    make(path)
    assert not snakemake_repair.is_damaged(path)
    whole = path.read_bytes()
    for size in {*range(0, len(whole), max(1, len(whole) // 50)), len(whole) - 1}:
        path.write_bytes(whole[:size])
        assert snakemake_repair.is_damaged(path), size


def test_times_in_the_future_become_now(tmp_path):
    ahead, past = tmp_path / "a/ahead", tmp_path / "past"
    ahead.parent.mkdir()
    for path, moment in ((ahead, time.time() + 3 * faults.DAY), (past, 1_000_000_000)):
        path.touch()
        os.utime(path, (moment, moment))
    assert snakemake_repair.forget_the_future(tmp_path) == [ahead]
    assert ahead.stat().st_mtime <= time.time() + 1 and past.stat().st_mtime == 1_000_000_000
