"""GPU leases: real processes on devices that are names only."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from moat.base.errors import ConfigError
from moat.machine import gpu_lease, gpus, locks
from moat.machine.gpu_lease import Slot, lease
from moat.machine.gpus import Gpu

HOLDER = Path(__file__).with_name("holder.py")
TWO = [Gpu("a", "a"), Gpu("b", "b")]


@pytest.fixture
def folder(tmp_path) -> Path:
    return locks.make_folder(tmp_path / "locks")


@pytest.fixture
def hold(folder):
    """Lease in another process: starts it, and returns it once it holds or waits."""
    started = []

    def start(*, gpus="a", slots=1, wait_for="holds") -> subprocess.Popen:
        code = (
            "import logging, os, sys, time; logging.basicConfig(format='%(message)s')\n"
            "from moat.machine.gpu_lease import lease\n"
            "with lease():\n    print('holds', os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n    time.sleep(60)"
        )
        environment = {**os.environ, "MOAT_GPUS": gpus, "MOAT_SLOTS_PER_GPU": str(slots), "MOAT_LOCKS": str(folder)}
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        process.said = process.stdout.readline()
        assert wait_for in process.said
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def journal_of(path: Path) -> list[tuple[str, int, str]]:
    """Events in their order: what, pid, where."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(what, int(pid), where) for _, pid, what, where in sorted(lines, key=lambda line: int(line[0]))]


def wait_until(condition) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("count", "staying", "killed_early"), [(16, 3, 3), pytest.param(50, 8, 7, marks=pytest.mark.long)]
)
def test_many_processes_on_three_slots_with_random_kills(tmp_path, folder, count, staying, killed_early):
    """Never two on one device; everybody who is not killed gets through, in the order of arrival."""
    journal, random_ = tmp_path / "journal", random.Random(1)
    for suffix in ("", ".a", ".b", ".c"):
        (tmp_path / f"journal{suffix}").touch()
    environment = {**os.environ, "MOAT_GPUS": "a,b,c", "MOAT_LOCKS": str(folder)}
    # Some of them stay until they are killed.
    stays = [60.0] * staying + [random_.uniform(0, 0.1) for _ in range(count - staying)]
    random_.shuffle(stays)
    crowd, endless = {}, set()
    with contextlib.ExitStack() as held:
        for name in "abc":
            held.enter_context(lease([Gpu(name, name)], folder=folder, environ={}))
        for stay in stays:
            process = subprocess.Popen([sys.executable, str(HOLDER), str(journal), str(stay)], env=environment)
            crowd[process.pid] = process
            if stay == 60:
                endless.add(process.pid)
        wait_until(lambda: len(journal_of(journal)) == count)
        places = {pid: int(place) for _, pid, place in journal_of(journal)}
        assert sorted(places.values()) == list(range(count))
        struck = set(random_.sample(sorted(set(crowd) - endless), killed_early))
        for pid in struck:
            crowd[pid].send_signal(random_.choice([signal.SIGKILL, signal.SIGTERM]))
    while endless - struck:
        inside = {pid for what, pid, _ in journal_of(journal) if what == "in"}
        for pid in inside & endless - struck:
            time.sleep(random_.uniform(0, 0.05))
            crowd[pid].kill()
            struck.add(pid)
    for process in crowd.values():
        process.wait(timeout=300)

    events = journal_of(journal)
    assert "CLASH" not in {what for what, _, _ in events}
    assert {pid for what, pid, _ in events if what == "out"} == set(crowd) - struck
    served = [places[pid] for what, pid, _ in events if what == "in"]
    # Between having a device and writing that down another may be faster. Without a queue it is most of the crowd.
    overtaken = max(sum(later > place for later in served[:when]) for when, place in enumerate(served))
    assert len(served) == count - killed_early and overtaken <= count // 3
    # Who is killed while waiting leaves a ticket, which the next one to look at the queue removes: after the last in
    # the queue that is the next to come.
    with lease([Gpu("a", "a")], folder=folder, environ={}):
        assert not list(folder.glob("ticket.*"))


def test_a_killed_holder_frees_its_slot_and_a_killed_waiter_its_place(folder, hold):
    holder = hold()
    first, second = hold(wait_for="waiting, 0 before"), hold(wait_for="waiting, 1 before")
    assert f"a slot 0: pid {holder.pid} of " in first.said
    last = hold(wait_for="waiting, 2 before")
    last.kill()
    last.wait()
    first.kill()
    first.wait()
    holder.kill()
    assert second.stdout.readline() == "holds a\n"
    # Nobody waits behind the last: its ticket is for the next to come to remove.
    assert [path.name for path in folder.glob("ticket.*")] == ["ticket.3"]
    hold(wait_for="waiting, 0 before")
    assert [path.name for path in folder.glob("ticket.*")] == ["ticket.1"]


def test_who_waits_for_another_device_is_not_in_the_way(hold):
    hold(gpus="a")
    hold(gpus="a", wait_for="waiting")
    assert hold(gpus="b").said == "holds b\n"
    assert hold(gpus="a,c", wait_for="waiting, 1 before")


def test_a_waiting_process_can_be_stopped_with_sigterm(hold):
    hold()
    waiting = hold(wait_for="waiting")
    waiting.terminate()
    assert waiting.wait(timeout=10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("slots", "devices"),
    [(1, ["a", "b"]), (2, ["a", "b", "a", "b"]), (3, ["a", "b", "a", "b", "a", "b"])],
)
def test_slots_are_spread_over_the_devices_before_they_are_packed(hold, slots, devices):
    taken = [hold(gpus="a,b", slots=slots).said.split()[1] for _ in devices]
    assert taken == devices
    hold(gpus="a,b", slots=slots, wait_for="waiting")


def test_the_emptiest_device_is_taken(hold):
    first, _, _ = (hold(gpus="a,b", slots=2) for _ in range(3))
    assert first.said == "holds a\n"
    first.kill()
    first.wait()
    hold(gpus="b", slots=2)
    # One place on a is taken, and both on b.
    assert hold(gpus="a,b", slots=2).said == "holds a\n"


def test_the_environment_names_the_device_and_is_restored(folder):
    for before in ({}, {"CUDA_VISIBLE_DEVICES": "a,b"}):
        environ = dict(before)
        with lease(TWO, folder=folder, environ=environ) as slot:
            assert slot == Slot(TWO[0], 0)
            assert environ == {"CUDA_VISIBLE_DEVICES": "a", "MOAT_GPU_LEASE": "a slot 0"}
            with lease(TWO, folder=folder, environ={}) as other:
                assert other == Slot(TWO[1], 0)
        assert environ == before


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "3"},
        {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"},
        {"SLURM_JOB_ID": "7"},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"MOAT_GPUS": ""},
        {"CUDA_VISIBLE_DEVICES": "0", "MOAT_GPU_LEASE": "0 slot 0"},
    ],
    ids=str,
)
def test_nothing_is_leased_or_changed(folder, environ):
    """SLURM has chosen, there is no GPU, or the parent process holds a lease."""
    before = dict(environ)
    with lease(folder=folder, environ=environ) as slot:
        assert slot is None and environ == before
    assert not list(folder.iterdir())


def test_moat_gpus_leases_inside_a_slurm_job(folder):
    with lease(folder=folder, environ={"SLURM_JOB_ID": "7", "MOAT_GPUS": "0,1"}) as slot:
        assert slot.gpu == Gpu("0", "0")


H200 = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb)
  MIG 1g.18gb     Device  0: (UUID: MIG-b1)
  MIG 1g.18gb     Device  1: (UUID: MIG-b2)
GPU 2: NVIDIA H200 (UUID: GPU-cccc)
"""


def test_a_divided_device_is_its_instances():
    assert [gpu.name for gpu in gpus.parse_listing(H200)] == ["GPU-aaaa", "MIG-b1", "MIG-b2", "GPU-cccc"]


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, ["GPU-aaaa", "MIG-b1", "MIG-b2", "GPU-cccc"]),
        ({"CUDA_VISIBLE_DEVICES": "3,0"}, ["GPU-cccc", "GPU-aaaa"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-cc"}, ["GPU-cccc"]),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, ["GPU-aaaa"]),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,none,1"}, ["GPU-aaaa"]),
        ({"CUDA_VISIBLE_DEVICES": "all"}, []),
        ({"CUDA_VISIBLE_DEVICES": "MIG-b1"}, ["MIG-b1"]),
        ({"MOAT_GPUS": "x, y"}, ["x", "y"]),
        ({"MOAT_GPUS": "", "CUDA_VISIBLE_DEVICES": "0"}, []),
    ],
    ids=str,
)
def test_devices_come_from_the_environment_or_the_driver(tmp_path, monkeypatch, environ, found):
    """By a driver's program that lists what an H200 machine does: one lock name per device, however it is called."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{H200}EOF\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [gpu.name for gpu in gpus.find(environ)] == found


@pytest.mark.parametrize("chosen", ["0", "0,1", "7", "GPU-aaaa", "MIG-b1", "cuda", "", "-1"])
def test_without_a_driver_no_variable_makes_a_gpu(monkeypatch, chosen):
    monkeypatch.setattr(gpus, "driver_gpus", list)
    assert gpus.find({"CUDA_VISIBLE_DEVICES": chosen}) == []


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"MOAT_GPUS": "a,a"}, "MOAT_GPUS=a,a: names a GPU twice"),
        ({"MOAT_GPUS": "a", "MOAT_SLOTS_PER_GPU": "0"}, "MOAT_SLOTS_PER_GPU=0: allowed: whole numbers from 1"),
        ({"MOAT_GPUS": "a", "MOAT_SLOTS_PER_GPU": "two"}, "MOAT_SLOTS_PER_GPU=two"),
        ({"MOAT_GPUS": "a", "MOAT_LOCKS": "/proc/locks"}, "MOAT_LOCKS names one"),
    ],
)
def test_a_wrong_setting_is_named(environ, said):
    with pytest.raises(ConfigError) as caught, lease(environ=environ):
        pass
    assert said in str(caught.value)


def test_another_users_processes_share_the_slots(folder, hold):
    """Files of root's in a folder like /tmp: a process of nobody's waits for them, and takes them when free."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    if not all(parent.stat().st_mode & 0o001 for parent in Path(sys.base_prefix).resolve().parents):
        pytest.skip("another user cannot read this interpreter's modules")
    holder = hold()
    code = (
        "import logging, os; from moat.machine.gpu_lease import lease\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); logging.basicConfig(format='%(message)s')\n"
        "with lease():\n    print('holds', flush=True)"
    )
    for parent in folder.parents[:3]:
        parent.chmod(0o755)
    environment = {**os.environ, "MOAT_GPUS": "a", "MOAT_LOCKS": str(folder)}
    other = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)  # fmt: skip
    assert "waiting, 0 before" in other.stdout.readline()
    holder.kill()
    assert other.stdout.readline() == "holds\n"
    assert other.wait(timeout=10) == 0


def test_looking_for_holders_makes_no_files(tmp_path):
    folder = tmp_path / "locks"
    assert gpu_lease.holders(TWO, slots_per_gpu=2, folder=folder) == dict.fromkeys(
        Slot(gpu, number) for gpu in TWO for number in range(2)
    )
    assert not folder.exists()


def test_doctor_lists_devices_and_holders(folder, hold, monkeypatch):
    from moat.commands.doctor import _gpu_slots
    from moat.config.project import Project

    for name, value in {"MOAT_GPUS": "a,b", "MOAT_SLOTS_PER_GPU": "2", "MOAT_LOCKS": str(folder)}.items():
        monkeypatch.setenv(name, value)
    process = hold(gpus="b")
    messages = Counter(check.message.partition(" since")[0] for check in _gpu_slots(Project(Path(__file__).parents[2])))
    assert messages[f"b slot 0: held by pid {process.pid} of root" if os.getuid() == 0 else ""] == 1
    assert [message for message in messages if message.endswith("free")] == [
        "a slot 0: free",
        "a slot 1: free",
        "b slot 1: free",
    ]


def test_a_lease_is_too_late_once_cuda_is_in_use(folder, monkeypatch):
    import torch

    from moat.base.errors import MoatError

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(MoatError, match="CUDA is in use"), lease(TWO, folder=folder, environ={}):
        pass
    assert gpu_lease.holders(TWO, slots_per_gpu=1, folder=folder) == {Slot(gpu, 0): None for gpu in TWO}
