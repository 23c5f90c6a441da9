"""A job's log is appended to, and from how its attempts ended the next one asks for more of what was lacking."""

import subprocess
from types import SimpleNamespace

import pytest
from snakemake.utils import format as snakemake_format

from moat.config.project import Project
from moat.pipeline.attempts import failures, logged
from moat.pipeline.inputs import Inputs
from project_copy import ROOT

CONFIG = {"scale": "smoke", "studies": ["unified"], "refresh": "never"}
NET = {"scale": "smoke", "dataset": "digits", "arch": "resnet18", "method": "trades", "seed": "0"}


def attempt(log, command):
    """Run a command as the rules do; its exit code."""
    shell = snakemake_format(logged(command), log=log)
    return subprocess.run(["/bin/bash", "-c", f"set -euo pipefail; {shell}"]).returncode


def test_a_log_keeps_what_earlier_attempts_said(tmp_path):
    log = tmp_path / "a log.log"
    assert attempt(log, "echo first") == 0
    assert attempt(log, "sh -c 'echo second; exit 75'") == 75
    lines = log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("==")] == ["first", "second"]
    assert [line.split(" at ")[0] for line in lines if "attempt" in line] == ["== attempt"] * 2
    assert lines[-1] == "== ended with exit code 75"


@pytest.mark.parametrize(
    ("command", "lacked"),
    [
        ("sh -c 'kill -9 $$'", "memory"),
        ("sh -c 'echo torch.OutOfMemoryError: CUDA out of memory.; exit 1'", "memory"),
        ("sh -c 'echo MemoryError; exit 1'", "memory"),
        ("sh -c 'exit 75'", "time"),
        ("sh -c 'kill -TERM $$'", "time"),
        ("sh -c 'echo no such file; exit 3'", "other"),
    ],
    ids=["killed for memory", "of the GPU", "of Python", "interrupted", "terminated", "an error"],
)
def test_how_an_attempt_ended(tmp_path, command, lacked):
    log = tmp_path / "log"
    attempt(log, "sh -c 'exit 3'")
    attempt(log, command)
    assert failures(log) == ["other", lacked]


def test_an_attempt_whose_shell_was_killed_may_have_lacked_anything(tmp_path):
    log = tmp_path / "log"
    log.write_text("== attempt at noon on a\nepoch 1\n== attempt at one on a\n== ended with exit code 1\n")
    assert failures(log) == ["killed", "other"]
    assert failures(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("rule", "ended", "mem_mb", "runtime"),
    [
        ("train", [137], 2, 1),
        ("train", [75], 1, 1),
        ("train", [1], 1, 1),
        ("evaluate", [75], 1, 2),
        ("evaluate", [75, 75], 1, 3),
        ("evaluate", [137, 75], 2, 2),
        ("evaluate", [137, 137, 137], 3, 1),
        ("verify", [143], 1, 2),
        ("verify", [None], 2, 2),
        ("train", [None], 2, 1),
        ("probe", [3], 1, 1),
    ],
)
def test_a_resource_grows_for_what_it_lacks_only(tmp_path, rule, ended, mem_mb, runtime):
    """A training goes on from where it was: no end of it is for lack of time."""
    inputs = Inputs(Project(ROOT), {**CONFIG, "max_resources": {"mem_mb": None, "runtime": None}}, logs=tmp_path)
    wildcards = SimpleNamespace(**NET, weights="", suite="trust", probe="weights")
    name = {"evaluate": "seed0/trust", "probe": "seed0/weights"}.get(rule, "seed0")
    log = tmp_path / f"smoke/{rule}/digits/resnet18/trades/{name}.log"
    log.parent.mkdir(parents=True)
    # Of an earlier call, which asks for nothing now.
    text = "== attempt at dawn on a\n== ended with exit code 137\n"
    for code in ended:
        text += "== attempt at noon on a\n" + ("" if code is None else f"== ended with exit code {code}\n")
    log.write_text(text)
    asked = {each: inputs.resource(rule, each) for each in ("mem_mb", "runtime")}
    first = {name: ask(wildcards, 1) for name, ask in asked.items()}
    later = {name: ask(wildcards, 1 + len(ended)) for name, ask in asked.items()}
    assert {name: later[name] / first[name] for name in later} == {"mem_mb": mem_mb, "runtime": runtime}
    capped = Inputs(Project(ROOT), {**CONFIG, "max_resources": {"mem_mb": 100, "runtime": 1}}, logs=tmp_path)
    assert capped.resource(rule, "mem_mb")(wildcards, 1 + len(ended)) == 100
