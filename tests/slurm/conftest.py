"""A real SLURM on this machine, for as long as the tests of this folder run; or the reason why there is none."""

import subprocess
from collections.abc import Callable

import pytest
import small_project
from slurm_cluster import SCALE, SCRIPT, Cluster, missing
from small_project import Workflow


@pytest.fixture(scope="session")
def cluster():
    if reason := missing():
        pytest.skip(reason)
    subprocess.run([SCRIPT, "up"], check=True, timeout=120)
    yield Cluster()
    subprocess.run([SCRIPT, "down"], check=True, timeout=60)


@pytest.fixture(scope="session")
def make_project(tmp_path_factory) -> Callable[[str], Workflow]:
    """The same project in a folder of its own; every user of the machine may read it."""

    def make(name: str) -> Workflow:
        folder = tmp_path_factory.mktemp("slurm") / name
        return small_project.make(folder, scale=SCALE, studies={"first": small_project.study("pgd-at", "trades")})

    return make
