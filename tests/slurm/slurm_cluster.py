"""A SLURM cluster on this machine, seen through its own commands."""

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small_project

SCRIPT = Path(__file__).with_name("cluster.sh")
# Long enough to be met in the middle, on a busy machine too.
SCALE = {
    **small_project.SCALE,
    "data": {**small_project.SCALE["data"], "train_limit": 400},
    "recipe": {"batch_size": 16, "validation": {"setting": "clean"}},
    # The profile has SLURM stop a job three minutes before that.
    "resources": {name: {"mem_mb": 1000, "runtime": 20} for name in ("train", "evaluate", "verify")},
}


def missing() -> str | None:
    """What keeps the tests from running here."""
    if os.getuid() != 0:
        return "needs root, to start a SLURM cluster"
    programs = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
    if programs:
        return f"{', '.join(programs)} not installed; .ci/slurm installs them"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "pip install -e .[slurm]"
    if Path("/etc/slurm/slurm.conf").exists():
        return "this machine belongs to a SLURM cluster already"
    return None


class Cluster:
    """What SLURM says about its jobs, and how they are disturbed."""

    def query(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def jobs(self, comment: str) -> list[dict[str, str]]:
        """Jobs whose comment (rule and wildcards) holds a text, the oldest first."""
        keys = {"id": "%i", "partition": "%P", "state": "%T", "limit": "%l", "memory": "%m", "comment": "%k"}
        listed = self.query("squeue", "--states=all", "--noheader", f"--format={'|'.join(keys.values())}")
        jobs = [dict(zip(keys, line.split("|"), strict=True)) for line in listed.splitlines()]
        return sorted((job for job in jobs if comment in job["comment"]), key=lambda job: int(job["id"]))

    def restarts(self, job: str) -> int:
        described = self.query("scontrol", "--oneliner", "show", "job", job)
        return int(described.partition("Restarts=")[2].split()[0])

    def cancel(self) -> None:
        subprocess.run(["scancel", "--user=root"], check=False, timeout=60)

    def controller(self, *, up: bool) -> None:
        subprocess.run([SCRIPT, "controller-up" if up else "controller-down"], check=True, timeout=60)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 600) -> object:
    """Look ten times a second until a condition holds; return what it gave."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > until:
            pytest.fail(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.1)
    return found
