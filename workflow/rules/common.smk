# What all rules share: the configuration, the environment of jobs, and the patterns of their outputs. What rules ask for
# are functions of the package, moat.pipeline.inputs.
import os
import shlex
import sys
from pathlib import Path

from moat.config import paths, schema
from moat.config.project import Project
from moat.machine import devices
from moat.pipeline.inputs import MEASURED_WILDCARDS, RUN_WILDCARDS, Inputs, one_of, result_files, run_of, name_of
from moat.pipeline.snakemake_repair import clamp_future_mtimes
from moat.pipeline.warm import start as warm

allowed = Path(workflow.basedir, "workflow/schemas/config.schema.yaml")
schema.read_words(config, allowed)
schema.validate(config, allowed, source="config/config.yaml, --configfile or --config")
if os.getcwd() != os.path.realpath(workflow.basedir):
    raise WorkflowError(f"run snakemake in the project's root, {workflow.basedir}; this is {os.getcwd()}")
inputs = Inputs(Project("."), config)

# Jobs find the `moat` of the environment that runs Snakemake, also where that one is not activated, and the mirror.
# (The mirror is no parameter of fetching: another one must not fetch again what is there and verified.)
environment = {"MOAT_SLOTS_PER_GPU": config["slots_per_gpu"]}
if config["data"]["mirror"] and not os.environ.get("MOAT_MIRROR"):
    environment["MOAT_MIRROR"] = config["data"]["mirror"]
# A signal to all of a job reaches its shell, too: it waits until the command has saved its work, and ends as that does.
exports = "; ".join(f"export {name}={shlex.quote(str(value))}" for name, value in environment.items())
binaries = shlex.quote(os.path.dirname(sys.executable))
shell.prefix("trap : TERM; " + "{exports}; export PATH={binaries}:$PATH; ")

# The sacct that the SLURM plugin asks: a wrapper that answers where the real one does not.
os.environ.update(PATH=os.pathsep.join([f"{workflow.basedir}/workflow/profiles/slurm/bin", *os.get_exec_path()]))

RUN = paths.run_dir("{scale}", RUN_WILDCARDS)
EVALUATION = paths.evaluation("{scale}", MEASURED_WILDCARDS, "{suite}")
PROBE = paths.probe("{scale}", RUN_WILDCARDS, "{probe}")


wildcard_constraints:
    **inputs.wildcard_constraints(),


def made_again(kind):
    """An input function without inputs: it has a result made again that was cut short, or is stale and asked for."""

    def look(wildcards):
        if why := inputs.why_again(kind, wildcards):
            file = str(result_files(kind, wildcards.scale, run_of(wildcards), name_of(wildcards))[0])
            if file not in workflow.dag.forcefiles:
                # As `--forcerun` does, which would also make a target of it.
                workflow.dag.forcefiles.add(file)
                print(f"moat: {file} is made again: {why}", file=sys.stderr)
        return []

    return look
