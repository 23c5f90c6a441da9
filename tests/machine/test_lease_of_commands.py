"""Commands that compute lease their GPU before torch is imported, and wait for it like any other process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moat.base.files import write_json
from moat.machine import locks
from moat.machine.gpu_lease import lease
from moat.machine.gpus import Gpu

ROOT = Path(__file__).parents[2]
RUN = ("--dataset", "digits", "--arch", "lenet5", "--method", "standard", "--seed", "0", "--scale", "smoke")
COMMANDS = {
    "train": ("train", *RUN, "--out", "{out}/run"),
    "evaluate": ("evaluate", "--run", "{out}/run", "--suite", "quick", "--out", "{out}/quick.parquet"),
    "verify": ("verify", "--run", "{out}/run", "--out", "{out}/checks.json"),
    "probe": ("probe", "--run", "{out}/run", "--probe", "weights", "--out", "{out}/weights.safetensors"),
}

# As much of a finished run as a command reads before it has a GPU.
RECORD = {
    **{
        "dataset": "digits",
        "arch": "lenet5",
        "method": "standard",
        "class": "standard",
        "mixture": None,
        "seed": 0,
        "scale": "smoke",
    },
    **{"model": {}, "data": {"path": "digits.safetensors"}, "num_classes": 10, "model_sha256": "0", "last_sha256": "0"},
}

# The command as it is, but for what comes after the lease: torch is looked for, and the device that is shown to it.
STOP_AT_SELECTION = """
import os, sys
from moat.commands import cli
from moat.machine import devices
def stop(name, threads):
    print("selected", name, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    raise SystemExit(0)
devices.select = stop
import moat.machine.gpu_lease as gpu_lease
take = gpu_lease._take
def looking(*arguments):
    print("torch" in sys.modules, flush=True)
    return take(*arguments)
gpu_lease._take = looking
sys.exit(cli.main(sys.argv[1:]))
"""


def start(tmp_path, command, **environment) -> subprocess.Popen:
    """The command in the project's root, with devices ``a`` and ``b``."""
    return subprocess.Popen(
        [sys.executable, "-c", STOP_AT_SELECTION, *(word.format(out=tmp_path) for word in command)],
        cwd=ROOT,
        env={**os.environ, "MOAT_LOCKS": str(tmp_path), "MOAT_GPUS": "a,b", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.brief(keep=lambda case: "cuda:1" in case["device"])
@pytest.mark.parametrize(
    ("command", "device", "selected"),
    [
        ("train", [], "auto a"),
        ("train", ["--device", "cuda"], "cuda a"),
        ("train", ["--device", "cuda:1"], "cuda b"),
        ("evaluate", [], "auto a"),
        ("verify", [], "auto a"),
        ("probe", [], "auto a"),
    ],
)
def test_a_command_leases_before_torch_is_imported(tmp_path, command, device, selected):
    write_json(tmp_path / "run" / "run.json", RECORD)
    said, errors = start(tmp_path, [*COMMANDS[command], *device]).communicate(timeout=60)
    assert said.splitlines() == ["False", f"selected {selected}"], errors


@pytest.mark.brief(keep=lambda case: case["environment"])
@pytest.mark.parametrize(
    ("device", "environment"),
    [(["--device", "cpu"], {}), ([], {"MOAT_GPUS": ""})],
    ids=["cpu", "no GPU"],
)
def test_without_a_gpu_nothing_is_leased(tmp_path, device, environment):
    said, errors = start(tmp_path, [*COMMANDS["train"], *device], **environment).communicate(timeout=60)
    assert said.splitlines() == [f"selected {(device or ['auto'])[-1]} None"], errors


@pytest.mark.long
def test_a_gpu_that_is_not_there_is_named(tmp_path):
    process = start(tmp_path, [*COMMANDS["train"], "--device", "cuda:2"])
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--device cuda:2: no such GPU; found: a, b" in errors


@pytest.mark.brief(keep=lambda case: case["command"][0] == "train")
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (COMMANDS["evaluate"], 3, "run.json: no such file"),
        (COMMANDS["verify"], 3, "run.json: no such file"),
        (("train", *RUN[:5], "trads", *RUN[6:], "--out", "{out}/run"), 2, "did you mean 'trades'"),
        (("evaluate", "--model", "somewhere:make", *COMMANDS["evaluate"][3:]), 2, "--dataset NAME"),
    ],
)
def test_what_is_wrong_is_told_before_waiting_for_a_gpu(tmp_path, command, code, words):
    with lease([Gpu("a", "a")], folder=locks.make_folder(tmp_path), environ={}):
        process = start(tmp_path, command, MOAT_GPUS="a")
        said, errors = process.communicate(timeout=60)
    assert process.returncode == code and words in errors
    assert "waiting" not in errors and said == ""


def test_sigterm_while_it_waits_is_an_interruption(tmp_path):
    """Also at once: inside the writing of that message, where logging swallows whatever is an Exception."""
    with lease([Gpu("a", "a")], folder=locks.make_folder(tmp_path), environ={}):
        process = start(tmp_path, COMMANDS["train"], MOAT_GPUS="a")
        while "waiting" not in (line := process.stderr.readline()):
            assert line, "it ended without waiting"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the same command continues" in errors
