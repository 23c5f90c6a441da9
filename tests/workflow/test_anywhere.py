"""The workflow in another folder than its own, as a module of another workflow, and with software of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import small_project
from small_project import Workflow

TABLE = "results/tiny/tables/first-table.csv"
PREPARED = "results/tiny/data/digits.safetensors"
PLANNED = {"fetch": 1, "prepare": 1, "train": 2, "evaluate": 2, "verify": 2, "tabulate": 1}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workflow:
    studies = {"first": small_project.study("standard", "trades")}
    return small_project.make(tmp_path_factory.mktemp("anywhere") / "a clone", studies=studies)


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    folder = tmp_path / "my project"
    folder.mkdir()
    return folder


def run(project, folder, *options, **environment) -> subprocess.CompletedProcess:
    """Snakemake in another folder, with the package of the project."""
    call = [sys.executable, "-m", "snakemake", "--cores", "2", *options]
    done = {**project.environment(), **environment}
    return subprocess.run(call, cwd=folder, env=done, capture_output=True, text=True, timeout=1800)


def planned(done: subprocess.CompletedProcess) -> dict[str, int]:
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    jobs = re.findall(r"^(?:local)?rule (\w+):", text, re.MULTILINE)
    return {name: count for name, count in Counter(jobs).items() if name not in ("all", "mine")}


def commands(done: subprocess.CompletedProcess) -> dict[str, str]:
    """Subcommand of moat -> one of its shell commands."""
    found = re.findall(r"^Shell command: .*?(trap : TERM; .*)$", done.stdout + done.stderr, re.MULTILINE)
    pattern = r" (fetch|prepare|train|evaluate|verify|tabulate|draw|report) "
    return {re.search(pattern, line)[1]: line for line in found}


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        ["--snakefile", "{project}/Snakefile"],
        ["--snakefile", "{project}/workflow/Snakefile", "--directory", "{elsewhere}"],
    ],
    ids=["another working directory", "--directory"],
)
def test_results_go_where_snakemake_works_and_configuration_stays_beside_the_snakefile(project, elsewhere, options):
    options = [option.format(project=project.root, elsewhere=elsewhere) for option in options]
    done = run(project, elsewhere, *options, "--dry-run", "--printshellcmds", TABLE)
    assert planned(done) == PLANNED
    found = commands(done)
    assert f"--project '{project.root}' train " in found["train"] and " --out results/tiny/runs/" in found["train"]
    assert " --results results " in found["tabulate"]
    # The profile of the workflow is found beside the Snakefile, too.
    assert "Using workflow specific profile" in done.stdout + done.stderr


MODULE = """
module moat:
    snakefile: {snakefile!r}
    config: config["moat"]
    {prefix}

use rule * from moat as moat_*

rule mine:
    default_target: True
    input: {table!r}
    output: "mine.txt"
    shell: "set -- one two; wc -l {{input}} > {{output}}"
"""


def write_module(
    project, folder, *, prefix: str = "", snakefile: str = "workflow/Snakefile", table: str = TABLE
) -> None:
    (folder / "config.yaml").write_text("moat: {scale: tiny}\nown: 1\n")
    text = MODULE.format(snakefile=str(project.root / snakefile), prefix=prefix, table=table)
    (folder / "Snakefile").write_text('configfile: "config.yaml"\n' + text)


@pytest.mark.long
@pytest.mark.parametrize(
    ("prefix", "results", "snakefile"),
    [
        ("", "results", "Snakefile"),
        ('prefix: "robust"', "robust/results", "workflow/Snakefile"),
        ('replace_prefix: {"results/": "robust/"}', "robust", "workflow/Snakefile"),
    ],
    ids=["no prefix", "prefix", "replaced prefix"],
)
def test_as_a_module_of_another_workflow(project, elsewhere, prefix, results, snakefile):
    table = f"{results}/tiny/tables/first-table.csv"
    write_module(project, elsewhere, prefix=prefix, snakefile=snakefile, table=table)
    done = run(project, elsewhere, "--dry-run", "--printshellcmds")
    assert planned(done) == {f"moat_{rule}": count for rule, count in PLANNED.items()}
    found = commands(done)
    assert f" --out {results}/tiny/runs/digits/lenet5/" in found["train"]
    assert f"tabulate --results {results} --scale tiny " in found["tabulate"]
    # What runs where Snakemake does is said rule by rule: a list of names would not be of the renamed rules.
    assert "localrules" not in done.stdout + done.stderr
    # The other workflow's own rules are left alone.
    assert "Shell command: set -- one two; wc -l" in done.stdout + done.stderr


@pytest.mark.long
def test_a_module_that_is_not_a_checkout_is_told_what_to_do(project, elsewhere, tmp_path):
    """A bare github(): a repository of this name, from which git is made to take the project."""
    repository = tmp_path / "repository"
    for command in (
        ["git", "init", "-q", str(repository)],
        ["cp", "-r", *map(str, project.root.iterdir()), str(repository)],
        ["git", "-C", str(repository), "add", "."],
        ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "-m", "m"],
        ["git", "-C", str(repository), "tag", "v1"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    write_module(project, elsewhere)
    text = (elsewhere / "Snakefile").read_text()
    text = re.sub("snakefile: .*", 'snakefile: github("some/moat", path="workflow/Snakefile", tag="v1")', text)
    (elsewhere / "Snakefile").write_text(text)
    (tmp_path / "gitconfig").write_text(f'[url "{repository}"]\n\tinsteadOf = https://github.com/some/moat\n')
    git = {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run(project, elsewhere, "--dry-run", **git)
    assert done.returncode != 0
    assert re.search(r"moat reads the files of a whole checkout, .*clone the repository", done.stdout + done.stderr)


# -- software that Snakemake provides --------------------------------------------------
# An Apptainer that notes what it is to run and with which environment, and runs it where only the container's programs
# are in PATH: the host's Python is not among them, and the container's moat is none of the host's.
APPTAINER = """#!/bin/sh
[ "$1" != --version ] || {{ echo apptainer version 1.3.4; exit 0; }}
for last; do :; done
printf '%s\\n' "$*" >> {folder}/asked
env > {folder}/environment
PATH={folder}/container exec /bin/bash -c "$last"
"""
CONTAINER = """#!/bin/sh
printf 'moat %s\\n' "$*" >> {folder}/ran
exec {python} -m moat "$@"
"""


def write_programs(folder: Path, programs: dict[str, str]) -> None:
    for name, text in programs.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text.format(folder=folder, python=sys.executable))
        (folder / name).chmod(0o755)


@pytest.mark.long
def test_in_a_container_nothing_of_the_host_s_python_reaches_the_job(project, tmp_path):
    write_programs(tmp_path, {"host/apptainer": APPTAINER, "container/moat": CONTAINER})
    copy = Workflow(shutil.copytree(project.root, tmp_path / "a clone", symlinks=True))
    path = f"{tmp_path / 'host'}:{os.environ['PATH']}"
    done = run(copy, copy.root, "--sdm", "apptainer", "--", PREPARED, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text()
    assert [line.split()[1] for line in (tmp_path / "ran").read_text().splitlines()] == ["fetch", "prepare"]
    assert len(re.findall("envs/moat.sif bash -c set -euo pipefail; .*trap : TERM; moat ", asked)) == 2
    assert "PATH=" not in asked
    assert os.path.dirname(sys.executable) not in asked
    # No fork of the host's warm process does the work either, although the configuration asks for warm starts.
    assert "MOAT_WARM" not in (tmp_path / "environment").read_text()


# A conda whose environments have one program, a Python that notes how it is called and with which environment.
CONDA = """#!/bin/bash
case "$1 $2" in
  "info --json") echo '{{"conda_prefix": "{folder}/base", "platform": "linux-64"}}' ;;
  --version*) echo conda 24.9.2 ;;
  config*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create")
    while [ "$1" != --prefix ]; do shift; done
    mkdir -p "$2/bin" "$2/conda-meta"
    cp {folder}/environment/python "$2/bin/python" ;;
esac
"""
ACTIVATE = 'export PATH="$1/bin:$PATH"\n'
PYTHON = """#!/bin/sh
printf '%s\\n' "$PYTHONPATH $*" >> {folder}/asked
env > {folder}/seen
exec {python} "$@"
"""


@pytest.mark.long
def test_with_conda_jobs_have_its_libraries_and_the_package_of_the_checkout(project, elsewhere, tmp_path):
    write_programs(tmp_path, {"host/conda": CONDA, "base/bin/activate": ACTIVATE, "environment/python": PYTHON})
    (tmp_path / "base/bin/conda").symlink_to(tmp_path / "host/conda")
    path = f"{tmp_path / 'host'}:{os.environ['PATH']}"
    options = ["--snakefile", str(project.root / "Snakefile"), "--sdm", "conda", "--", PREPARED]
    done = run(project, elsewhere, *options, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    begins = f"{project.root / 'src'} -m moat --project {project.root} "
    assert [line.removeprefix(begins).split()[0] for line in asked] == ["fetch", "prepare"]
    assert "MOAT_WARM" not in (tmp_path / "seen").read_text()


@pytest.mark.long
def test_a_module_makes_what_the_workflow_itself_makes(project, elsewhere):
    """From nothing to a table of two trained nets; a second call is idle."""
    table = "robust/results/tiny/tables/first-table.csv"
    write_module(project, elsewhere, prefix='prefix: "robust"', table=table)
    done = run(project, elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (elsewhere / "mine.txt").read_text().endswith(f"{table}\n")
    made = {path.name for path in elsewhere.iterdir()}
    assert made == {"Snakefile", "config.yaml", "mine.txt", "robust", "work", ".snakemake"}
    again = run(project, elsewhere, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
    # The project itself, where nothing was made.
    assert not (project.root / "results").exists()
    assert project.snakemake(TABLE).returncode == 0
    assert (project.root / TABLE).read_text() == (elsewhere / table).read_text()
