# What all rules share: the configuration, the jobs' command and environment, and the patterns of their outputs. What
# rules ask for are functions of the package, moat.pipeline.inputs.
import copy
import os
import sys
from pathlib import Path

# Last: where moat is not installed, jobs have an environment of their own (--sdm).
sys.path.append(str(checkout / "src"))

from moat.config import paths, schema
from moat.config.project import Project
from moat.machine import devices
from moat.pipeline import slurm
from moat.pipeline.attempts import logged
from moat.pipeline.inputs import LOGS, MEASURED_WILDCARDS, RUN_WILDCARDS, Inputs, one_of
from moat.pipeline.job_command import job_command, require_command
from moat.pipeline.snakemake_repair import clamp_future_mtimes
from moat.pipeline.warm import start as warm
from snakemake.utils import update_config

# A module's config is what the workflow that uses it gives, here on top of the defaults.
given, config = config, copy.deepcopy(Project(checkout).config())
update_config(config, given)
allowed = checkout / "workflow/schemas/config.schema.yaml"
schema.read_words(config, allowed)
schema.validate(config, allowed, source="config/config.yaml, --configfile or --config")

# Where results lie: results/, or what a module's `prefix:` makes of that.
results = Path(str(workflow.modifier.modify_path("results/x"))).parent
logs = Path(str(workflow.modifier.modify_path("logs/x"))).parent
inputs = Inputs(Project(checkout), config, results, logs)

# What provides the software of jobs: "conda", "apptainer", or nothing but the environment that runs Snakemake.
deployed = {method.name.lower() for method in workflow.deployment_settings.deployment_method}
before_every_command = job_command(checkout, deployed)

# Commands read these of their environment. (The mirror is no parameter of fetching: another one must not fetch again
# what is there and verified.)
os.environ.update(MOAT_SLOTS_PER_GPU=str(config["slots_per_gpu"]))
if config["data"]["mirror"] and not os.environ.get("MOAT_MIRROR"):
    os.environ.update(MOAT_MIRROR=config["data"]["mirror"])

RUN = paths.run_dir("{scale}", RUN_WILDCARDS)
EVALUATION = paths.evaluation("{scale}", MEASURED_WILDCARDS, "{suite}")
PROBE = paths.probe("{scale}", RUN_WILDCARDS, "{probe}")


wildcard_constraints:
    **inputs.wildcard_constraints(),


def moat(command):
    """The shell command of a rule: text rather than a variable in it, which a rule of a module would not find."""
    return logged(before_every_command + command)


def made_again(kind):
    """An input function without inputs: it has made again what Snakemake would take for done, and says why."""

    def look(wildcards):
        if why := inputs.why_again(kind, wildcards):
            file = str(inputs.made_again(kind, wildcards))
            if file not in workflow.dag.forcefiles:
                # As `--forcerun` does, which would also make a target of it.
                workflow.dag.forcefiles.add(file)
                print(f"moat: {file} is made again: {why}", file=sys.stderr)
        return []

    return look
