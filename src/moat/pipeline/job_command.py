"""How a job calls ``moat``: where the command is, and which checkout's configuration it reads."""

import os
import shlex
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from moat.base.errors import ConfigError


def job_command(checkout: Path, deployed: Collection[str] = ()) -> str:
    """The beginning of a rule's shell command, up to the name of the subcommand.

    A signal to all of a job reaches its shell, too: it waits until the command has saved its work, and ends as that
    does. (Without `exec`, with which a command that is pasted into a terminal would close it.)

    Args:
        checkout: the folder of the project, whose ``config/`` the command reads.
        deployed: what of ``"conda"`` and ``"apptainer"`` Snakemake provides the jobs' software by (``--sdm``). Without
            either it is the ``moat`` of the environment that runs Snakemake, also where that one is not activated. In
            a container it is the container's; in a conda environment the libraries are that one's, and the package is
            the checkout's.
    """
    if "apptainer" in deployed:
        words = ["moat"]
    elif "conda" in deployed:
        words = ["env", f"PYTHONPATH={checkout / 'src'}", "python", "-m", "moat"]
    else:
        words = [installed() or "moat"]
    if Path.cwd() != checkout:
        words += ["--project", str(checkout)]
    # Snakemake takes what is in braces for names of its own.
    return f"trap : TERM; {shlex.join(words)} ".replace("{", "{{").replace("}", "}}")


def require_command(checkout: Path, deployed: Collection[str] = ()) -> None:
    """Before jobs start; a dry run needs no ``moat``.

    Raises:
        ConfigError: jobs would find none.
    """
    if not deployed and installed() is None:
        raise ConfigError(
            f"no command moat in the environment of {sys.executable}; install it there, "
            f"pip install -c {checkout}/envs/requirements.lock -e '{checkout}[workflow]', or let Snakemake provide it, "
            "--sdm conda or --sdm apptainer (docs/cluster.md)"
        )


def installed() -> str | None:
    """The ``moat`` beside the interpreter that runs Snakemake, or the first in PATH."""
    return shutil.which("moat", path=os.path.dirname(sys.executable)) or shutil.which("moat")
