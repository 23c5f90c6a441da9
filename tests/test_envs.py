"""The environments agree: one set of versions, that of the lock file."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import conda_inject
import pytest
import yaml

from project_copy import copy_project

ROOT = Path(__file__).parents[1]
# What conda-forge calls otherwise than PyPI.
RENAMED = {"pytorch": "torch", "matplotlib-base": "matplotlib", "snakemake-minimal": "snakemake"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked():
    lines = (ROOT / "envs/requirements.lock").read_text().splitlines()
    return {normal(line.split("==")[0]): line.split("==")[1] for line in lines if line and not line.startswith("#")}


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return [(group, re.match(r"[\w-]+", entry)[0]) for group, entries in groups.items() for entry in entries]


def conda():
    return yaml.safe_load((ROOT / "envs/conda.yaml").read_text())["dependencies"]


@pytest.mark.parametrize(("group", "name"), declared(), ids=str)
def test_every_dependency_is_locked(group, name):
    assert normal(name) in locked()


@pytest.mark.parametrize("entry", [entry for entry in conda() if "=" in entry and isinstance(entry, str)])
def test_conda_has_the_versions_of_the_lock(entry):
    name, _, version = entry.partition("=")
    assert locked()[normal(RENAMED.get(name, name))] == version


def test_snakemake_accepts_the_conda_file_for_a_whole_workflow():
    """`conda:` at the top of a Snakefile brings its own Python."""
    conda_inject._check_env(yaml.safe_load((ROOT / "envs/conda.yaml").read_text()))


def test_conda_with_pip_has_all_that_the_package_needs():
    (from_pip,) = (entry["pip"] for entry in conda() if isinstance(entry, dict))
    assert all(locked()[normal(entry.split("==")[0])] == entry.split("==")[1] for entry in from_pip)
    names = {entry.partition("=")[0] for entry in conda() if isinstance(entry, str)}
    there = {normal(RENAMED.get(name, name)) for name in names} | {normal(entry.split("==")[0]) for entry in from_pip}
    assert {normal(name) for group, name in declared() if group in ("", "workflow")} <= there


@pytest.mark.long
def test_every_module_imports_without_what_only_the_workflow_needs():
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(dict.fromkeys(['snakemake', 'dvc', 'pulp', 'highspy']))\n"  # None: not to be imported
        "import moat\n"
        "for module in pkgutil.walk_packages(moat.__path__, 'moat.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "        print(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"moat.planning.budget", "moat.training.engine"} <= set(done.stdout.split())


def test_the_core_leaves_the_workflow_to_its_extra():
    groups = {name: group for group, name in declared()}
    assert {groups[name] for name in ("snakemake", "pulp", "highspy")} == {"workflow"}


@pytest.mark.parametrize("file", ["cpu.txt", "cuda.txt"])
def test_pip_files_install_the_project_under_the_lock(file):
    lines = (ROOT / "envs" / file).read_text().splitlines()
    assert "--constraint requirements.lock" in lines and "--editable .[workflow]" in lines


def test_the_container_copies_what_there_is_and_installs_under_the_lock():
    text = (ROOT / "envs/moat.def").read_text()
    copied = text.partition("%files")[2].partition("%post")[0].split("\n\n")[0].splitlines()
    sources = [name for line in copied if line.strip() for name in line.split()[:-1]]
    assert "envs/requirements.lock" in sources and all((ROOT / name).exists() for name in sources)
    assert "-c /opt/moat/envs/requirements.lock" in text


@pytest.mark.parametrize(
    "variables", [{"PIP_USER": "1"}, {"PIP_TARGET": "/x", "PIP_PREFIX": "/x", "PIP_ROOT": "/x"}, {}]
)
def test_pip_installs_into_the_virtual_environment_whatever_the_user_has_set(variables):
    """pip ends with an error for --user in a virtual environment; a variable comes before pip.conf."""
    target = "shown: ; @env"
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", target, "shown"],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    pip = {line for line in done.stdout.splitlines() if line.startswith(("PIP_USER", "PIP_T", "PIP_P", "PIP_R"))}
    assert pip == {"PIP_USER=0"}


@pytest.mark.parametrize(
    ("variables", "slots", "limit"),
    [
        ({"GPUS": "0"}, 3, ""),
        ({"GPUS": "2"}, 1, "--resources gpu=2"),
        ({"GPUS": "2"}, 3, "--resources gpu=6"),
        ({"MOAT_GPUS": "0,1,5"}, 2, "--resources gpu=6"),
    ],
)
def test_make_lets_as_many_jobs_lease_a_gpu_as_there_are_slots(tmp_path, variables, slots, limit):
    copy_project(tmp_path)
    config = tmp_path / "config/config.yaml"
    config.write_text(re.sub(r"^slots_per_gpu: \d+", f"slots_per_gpu: {slots}", config.read_text(), flags=re.MULTILINE))
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", ROOT / "Makefile", "--eval", "shown: ; @echo '$(LIMIT)'", "shown"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == limit
