"""Results that another machine made: taken from DVC, checked, and only then made known to Snakemake.

DVC knows content, Snakemake knows times and its own records. After a pull the times are arbitrary and there are no
records, so that Snakemake would make everything again. ``snakemake --touch`` puts that right, but it declares whatever
lies there to be up to date: it must come after a check that every file is what ``dvc.lock`` says, made from the code
and configuration that lie here.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, DataError, MoatError

# What to do about a change of each kind that `dvc status` names.
_ADVICE = (
    "Where only code or configuration differ: check out the commit that wrote dvc.lock, run this again, and come back;"
    " or make the results anew with `dvc repro`. Nothing was declared up to date"
)


def pull(root: Path, *, local: bool = False) -> None:
    """Put the results that ``dvc.lock`` names into the project at ``root``; Snakemake finds nothing to do after it.

    Args:
        local: take them from this machine's cache only, as after ``git checkout`` of another commit.

    Raises:
        ConfigError: DVC or Snakemake is not installed, or the folder is no DVC project with a dvc.lock.
        DataError: a file or a dependency is not what dvc.lock says; names them. Nothing was blessed.
        MoatError: a program failed; its own message stands above.
    """
    if not (root / "dvc.lock").exists():
        raise ConfigError(f"{root / 'dvc.lock'}: no such file; `dvc repro` writes it, and it is kept in git")
    dvc, snakemake = _program("dvc", "dvc"), _program("snakemake", "workflow")
    _call(root, [dvc, "checkout" if local else "pull"])
    changed = describe_changes(_status(root, dvc))
    if changed:
        raise DataError("; ".join(["the workspace is not what dvc.lock says", *changed, _ADVICE]))
    # All of them, not only those that seem out of date: this also records their recipes, from which Snakemake knows
    # what a later change of the configuration concerns.
    _call(
        root, [snakemake, "--cores", "1", "--touch", "--forceall", "--quiet", "progress", "rules", "host", "--", "all"]
    )
    _expect_nothing_to_do(root, snakemake)


def describe_changes(status: Mapping[str, Any]) -> list[str]:
    """What ``dvc status --json`` says, a line for each stage: ``models: config is modified, results/… is deleted``."""
    lines = []
    for stage, findings in status.items():
        said = []
        for finding in findings:
            if isinstance(finding, str):
                said.append(finding)
                continue
            for found in finding.values():
                said += [f"{path} is {_state(state)}" for path, state in found.items()]
        lines.append(f"{stage}: {', '.join(dict.fromkeys(said))}")
    return lines


def _state(state: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in state.items()) if isinstance(state, Mapping) else str(state)


def _status(root: Path, dvc: str) -> Mapping[str, Any]:
    done = subprocess.run([dvc, "status", "--json"], cwd=root, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise MoatError(f"`dvc status` failed: {done.stderr.strip()}")
    return json.loads(done.stdout or "{}")


def _expect_nothing_to_do(root: Path, snakemake: str) -> None:
    command = [snakemake, "--cores", "1", "--dry-run"]
    done = subprocess.run(command, cwd=root, env=_environment(), capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode or "Nothing to be done" not in said:
        raise MoatError(f"the results are here, but Snakemake would still do something:\n{said.strip()}")


def _call(root: Path, command: list[str]) -> None:
    # No input: a question (may this file be overwritten?) is then answered with no.
    done = subprocess.run(command, cwd=root, env=_environment(), stdin=subprocess.DEVNULL)
    if done.returncode:
        shown = " ".join([Path(command[0]).name, *command[1:]])
        raise MoatError(f"`{shown}` ended with {done.returncode}; its message stands above. Nothing was blessed")


def _program(name: str, extra: str) -> str:
    """The one beside this Python, else the one on the PATH."""
    found = shutil.which(name, path=_environment()["PATH"])
    if found is None:
        install = f"pip install -c envs/requirements.lock -e '.[{extra}]'"
        raise ConfigError(f"there is no `{name}` here; in the project: `{install}`")
    return found


def _environment() -> dict[str, str]:
    beside = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
