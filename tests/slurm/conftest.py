"""A real SLURM on this machine, for as long as the tests of this folder run; or the reason why there is none."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import small_project
from slurm_cluster import SCALE, SCRIPT, Cluster, missing
from small_project import Workflow


@pytest.fixture(scope="session")
def cluster():
    if reason := missing():
        pytest.skip(reason)
    try:
        subprocess.run([SCRIPT, "up"], check=True, timeout=120)
        yield Cluster()
    finally:
        subprocess.run([SCRIPT, "down"], check=True, timeout=60)


@pytest.fixture(scope="session")
def make_project(cluster, tmp_path_factory) -> Iterator[Callable[..., Workflow]]:
    """The same project in a folder of its own; every user of the machine may read it."""
    folders: list[Path] = []

    def make(name: str, epochs: int = 16) -> Workflow:
        folder = tmp_path_factory.mktemp("slurm") / name
        folders.append(folder)
        scale = {**SCALE, "recipe": {**SCALE["recipe"], "epochs": epochs}}
        return small_project.make(folder, scale=scale, studies={"first": small_project.study("pgd-at", "trades")})

    yield make
    # Without cgroups SLURM loses sight of what outlives its parent: the Snakemake inside of a preempted job.
    for process in psutil.process_iter(["cwd"]):
        if any(process.info["cwd"] == str(folder) for folder in folders):
            process.kill()
