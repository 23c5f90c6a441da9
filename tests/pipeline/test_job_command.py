"""The beginning of the rules' shell commands, on a machine whose only `moat` is one of these tests."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.utils import format as snakemake_format

from moat.base.errors import ConfigError
from moat.pipeline.job_command import job_command, require_command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def moat(tmp_path, monkeypatch):
    """A program that prints its arguments, beside the interpreter that runs Snakemake; nothing else is in PATH."""
    program = tmp_path / "environment/bin/moat"
    program.parent.mkdir(parents=True)
    write(program, "import sys\nprint(sys.argv[1:])")
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


def write(program, code):
    program.write_text(f"#!{os.path.realpath('/proc/self/exe')}\n{code}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("deployed", "here", "words"),
    [
        ((), True, ["{moat}"]),
        ((), False, ["{moat}", "--project", "{checkout}"]),
        (("env_modules",), True, ["{moat}"]),
        (("apptainer",), True, ["moat"]),
        (("apptainer",), False, ["moat", "--project", "{checkout}"]),
        (("conda",), True, ["env", "PYTHONPATH={checkout}/src", "python", "-m", "moat"]),
        (("conda", "apptainer"), True, ["moat"]),
    ],
    ids=["here", "elsewhere", "modules of the cluster", "container", "container elsewhere", "conda", "both"],
)
def test_what_jobs_call(moat, tmp_path, monkeypatch, deployed, here, words):
    checkout = tmp_path / "a clone {of} it's"
    checkout.mkdir()
    monkeypatch.chdir(checkout if here else tmp_path)
    command = snakemake_format(job_command(checkout, deployed) + "train --seed {wildcards}", wildcards="7")
    assert command.startswith("trap : TERM; ")
    asked = [word.format(moat=moat, checkout=checkout) for word in words]
    assert shlex.split(command.partition("; ")[2]) == [*asked, "train", "--seed", "7"]
    if not deployed:
        done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True)
        assert done.stdout == f"{[*asked[1:], 'train', '--seed', '7']}\n"


def test_a_moat_of_another_environment_is_taken_where_this_one_has_none(moat, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(moat.parent))
    assert str(moat) in job_command(tmp_path)


def test_without_moat_one_line_says_how_to_get_it(moat, tmp_path):
    require_command(tmp_path)
    moat.unlink()
    with pytest.raises(ConfigError, match=r"no command moat .*pip install .*--sdm conda") as error:
        require_command(tmp_path)
    assert "\n" not in str(error.value)
    # Jobs that have software of their own need none here, and neither does a dry run.
    require_command(tmp_path, ["conda"])
    assert job_command(tmp_path).startswith("trap : TERM; moat ")


def test_the_shell_around_a_command_waits_until_it_has_saved_its_work(moat, tmp_path):
    """SLURM signals every process of a job. Without the trap the shell dies first, and takes the job with it."""
    # Blocked and waited for: a signal that comes before the wait begins is not lost.
    work = (
        "import signal, time; term = {signal.SIGTERM}; signal.pthread_sigmask(signal.SIG_BLOCK, term); "
        "print('on', flush=True); signal.sigwait(term); time.sleep(0.5); raise SystemExit(75)"
    )
    write(moat, work)
    # With Snakemake's own beginning.
    command = ["/bin/bash", "-c", f"set -euo pipefail; {job_command(tmp_path)} train"]
    shell = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert shell.stdout.readline() == "on\n"
    os.killpg(shell.pid, signal.SIGTERM)
    assert shell.wait(timeout=60) == 75


@pytest.mark.long
def test_a_snakefile_of_a_bare_snakemake_can_be_read():
    """Where jobs have software of their own, the environment of Snakemake needs no torch, numpy or pandas."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'numpy', 'pandas', 'scipy', 'PIL', 'pyarrow']))\n"
        "from moat.config.project import Project\n"
        "from moat.machine import devices\n"
        "from moat.pipeline import inputs, job_command, slurm, snakemake_repair\n"
        "from moat.pipeline.warm import start\n"
        "project = Project('.')\n"
        "found = inputs.Inputs(project, project.config())\n"
        "found.wildcard_constraints(), devices.gpu_note()\n"
        "print(len(found.everything(project.config()['scale'])))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr
