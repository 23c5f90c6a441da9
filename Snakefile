# From nothing to every table and figure: fetch -> prepare -> train -> evaluate + verify -> tabulate + draw -> report.
#
#   snakemake --cores all --resources gpu=2                       what config/config.yaml asks for: scale quickstart
#   snakemake --cores all --resources gpu=2 --config scale=paper  the reproduction
#   snakemake --cores all results/paper/tables/dramoe-table2.csv  one table, and only what it needs
#
# A rule's work is one `moat` command, which runs by hand just the same. Configuration is read beside this file, and
# results go into the folder that Snakemake works in: this one, that of --directory, or that of a workflow of which this
# one is a module.
import os
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

checkout = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
if not checkout.is_dir():
    raise WorkflowError(
        f"moat reads the files of a whole checkout, and {checkout} is none: clone the repository, and name the Snakefile"
        " in the clone (docs/cluster.md, 'In another folder or workflow')"
    )


configfile: str(checkout / "config/config.yaml")


include: "workflow/rules/common.smk"


# Of all rules, with `--sdm apptainer`; `envs/moat.def` builds it.
container: os.path.relpath(checkout / "envs/moat.sif") if "apptainer" in deployed else None


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/verify.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/targets.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        inputs.everything(config["scale"]),
    localrule: True


onstart:
    require_command(checkout, deployed)
    for folder in (paths.results(config["scale"]), config["data"]["resources"]):
        if ahead := clamp_future_mtimes(folder):
            print(f"moat: {len(ahead)} files in {folder} had times in the future; they are now", file=sys.stderr)
    print(f"moat: scale {config['scale']} (scale=paper is the reproduction)", file=sys.stderr)
    if workflow.executor_plugin.name == "slurm":
        slurm.start(workflow.executor_settings, checkout)
    if workflow.local_exec:
        print(devices.gpu_note(), file=sys.stderr)
        # A fork of the warm process would be in the environment of this one.
        if config["warm_start"] and not deployed:
            warm.start()
