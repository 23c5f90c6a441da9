# From nothing to every table and figure: fetch -> prepare -> train -> evaluate + verify -> tabulate + draw -> report.
#
#   snakemake --cores all --resources gpu=2                       what config/config.yaml asks for: scale quickstart
#   snakemake --cores all --resources gpu=2 --config scale=paper  the reproduction
#   snakemake --cores all results/paper/tables/dramoe-table2.csv  one table, and only what it needs
#
# A rule's work is one `moat` command, which runs by hand just the same.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


# Used with `--sdm apptainer` only; `envs/moat.def` builds it.
container: "envs/moat.sif"


# Used with `--sdm conda` only.
conda: "envs/conda.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/verify.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/targets.smk"


report: "workflow/report/workflow.rst"


# On a cluster these run where Snakemake does: compute nodes often have no internet, and the others take seconds.
localrules:
    all,
    fetch,
    tabulate,
    draw,
    cells,
    page,


rule all:
    default_target: True
    input:
        paths.report(config["scale"]),


onstart:
    for folder in (paths.results(config["scale"]), config["data"]["resources"]):
        if ahead := clamp_future_mtimes(folder):
            print(f"moat: {len(ahead)} files in {folder} had times in the future; they are now", file=sys.stderr)
    print(devices.gpu_note(), file=sys.stderr)
    if config["warm_start"] and workflow.local_exec:
        warm.start()
