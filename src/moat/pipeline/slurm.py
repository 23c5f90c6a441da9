"""What the workflow does before Snakemake's SLURM plugin submits anything."""

import os
from pathlib import Path
from types import SimpleNamespace

from moat.base.errors import ConfigError


def start(settings: SimpleNamespace, checkout: Path) -> None:
    """Refuse what would run the wrong jobs, and put the wrapper of sacct first in PATH.

    Args:
        settings: the plugin's, as its options set them.
        checkout: the folder of the project.

    Raises:
        ConfigError: job arrays, with which version 2.8 of the plugin submits a script of two lines: every task runs
            the first job, and what says which other job it should be is a command of its own that does not exist.
    """
    if settings.array_jobs and settings.pass_command_as_script:
        raise ConfigError(
            f"--slurm-array-jobs={settings.array_jobs}: with slurm-pass-command-as-script, which the profile sets, "
            "every task of an array would run the first job; leave it out, or take that line out of "
            "workflow/profiles/slurm/config.yaml (grouped jobs need it)"
        )
    # It answers where the real one does not.
    os.environ["PATH"] = os.pathsep.join([str(checkout / "workflow/profiles/slurm/bin"), *os.get_exec_path()])
