# What all rules share: the project, its grid (expanded once per scale), and input functions.
import os
import sys
from types import SimpleNamespace
from functools import cache
from pathlib import Path

from moat.machine import devices
from moat.pipeline import snakemake_repair
from moat.provenance import staleness
from moat.base import plugins
from moat.config import paths, recipes, schema
from moat.config.grid import Run, build_grid, initial_runs
from moat.config.project import Project
from moat.config.transfer import transfer_kinds, transfer_runs
from moat.base.files import read_json, write_json
from moat.pipeline.warm import start as warm

schema.validate(
    config,
    Path(workflow.basedir, "workflow/schemas/config.schema.yaml"),
    source="config/config.yaml, --configfile or --config",
)
if os.getcwd() != os.path.realpath(workflow.basedir):
    raise WorkflowError(f"run snakemake in the project's root, {workflow.basedir}; this is {os.getcwd()}")
if workflow.is_main_process:
    for lock in snakemake_repair.clear_dead_locks():
        print(f"moat: removed {lock}, left by a Snakemake that was killed", file=sys.stderr)
    for folder in (paths.results(config["scale"]), config["data"]["resources"]):
        if ahead := snakemake_repair.forget_the_future(folder):
            print(
                f"moat: {len(ahead)} files in {folder} had times in the future; now they have this one", file=sys.stderr
            )
project = Project(".")
# A wrong name is told here: later it would be a missing input file.
project.scale(config["scale"])
for study in config["studies"]:
    project.study(study)

# Jobs find the `moat` of the environment that runs Snakemake, also where that one is not activated, and the mirror.
# (The mirror is no parameter of fetching: another one must not fetch again what is there and verified.)
environment = {
    "PATH": f"{os.path.dirname(sys.executable)}:$PATH",
    "MOAT_SLOTS_PER_GPU": config["slots_per_gpu"],
}
if config["data"]["mirror"] and not os.environ.get("MOAT_MIRROR"):
    environment["MOAT_MIRROR"] = config["data"]["mirror"]
# A signal to all of a job reaches its shell, too: it waits until the command has saved its work, and ends as that does.
shell.prefix("trap : TERM; " + "".join(f'export {name}="{value}"; ' for name, value in environment.items()))

# What the SLURM plugin asks; it stands in for a sacct that does not answer.
os.environ.update(PATH=os.pathsep.join([f"{workflow.basedir}/workflow/profiles/slurm/bin", *os.get_exec_path()]))

# The pattern of a run, and of one suite on it, in outputs.
NAMED_RUN = Run("{dataset}", "{arch}", "{method}", "{seed}")
RUN = paths.run_dir("{scale}", NAMED_RUN)
EVALUATION = paths.evaluation("{scale}", NAMED_RUN, "{suite}")
PROBE = paths.probe("{scale}", NAMED_RUN, "{probe}")


@cache
def grid(scale):
    return build_grid(project, scale, config["studies"])


@cache
def scale_spec(scale):
    return project.scale(scale)


@cache
def methods_of_role(role):
    return [name for name in project.names("methods") if project.method(name).get("role", "method") == role]


def one_of(names):
    """A wildcard constraint that matches exactly these names."""
    return "|".join(sorted(map(re.escape, names), reverse=True)) or "(?!)"


def run_of(wildcards):
    return Run(wildcards.dataset, wildcards.arch, wildcards.method, int(wildcards.seed))


def run_files(wildcards):
    """The finished run that an evaluation or a check looks at."""
    folder = paths.run_dir(wildcards.scale, run_of(wildcards))
    return {"model": folder / "model.safetensors", "run": folder / "run.json"}


@cache
def starts(scale, run):
    return initial_runs(project, scale, run)


def initial_models(wildcards):
    """The models that a training starts from."""
    runs = starts(wildcards.scale, run_of(wildcards)).values()
    return [paths.run_dir(wildcards.scale, run) / "model.safetensors" for run in runs]


def initialize_options(wildcards):
    runs = starts(wildcards.scale, run_of(wildcards)).items()
    return " ".join(f"--initialize-from {name}={paths.run_dir(wildcards.scale, run)}" for name, run in runs)


def run_digest(wildcards):
    """Changes exactly when the resolved recipe of a run does: this, not a file's time, re-trains it."""
    run = run_of(wildcards)
    resolved = recipes.resolve_run(
        project,
        wildcards.scale,
        dataset=run.dataset,
        arch=run.arch,
        method=run.method,
        seed=run.seed,
    )
    return recipes.digest(resolved)


def corrupted_images(wildcards):
    """The published corrupted images of the data set, where there are any and the suite asks for their severities.

    `moat evaluate` finds them beside the data set.
    """
    published = f"{wildcards.dataset}-c"
    asked = project.suite(wildcards.suite).get("corruptions") == "cifar10-c"
    return [paths.prepared(wildcards.scale, published)] if asked and published in project.names("datasets") else []


@cache
def suite_digest(scale, suite):
    return recipes.digest(recipes.resolve_evaluation(project, scale, suite))


def evaluation_digest(wildcards):
    return suite_digest(wildcards.scale, wildcards.suite)


def evaluation_options(wildcards, at_most=None):
    """Always with a limit: without one, the command takes the one that was in force when the run was trained."""
    evaluation = scale_spec(wildcards.scale)["evaluation"]
    limits = [limit for limit in (evaluation["limit"], at_most) if limit]
    return f"--batch-size {evaluation['batch_size']} --limit {min(limits, default='all')}"


@cache
def kinds_of_transfer(suite):
    return transfer_kinds(project, suite)


def transfer_folders(wildcards):
    """The runs that the suite's transferred examples are made on: kind -> folder. Only runs of the grid are asked for."""
    if not kinds_of_transfer(wildcards.suite):
        return {}
    shown = grid(wildcards.scale).checks
    found = transfer_runs(project, wildcards.suite, run_of(wildcards), shown)
    return {kind: paths.run_dir(wildcards.scale, run) for kind, run in found.items()}


def transfer_files(wildcards):
    folders = transfer_folders(wildcards).values()
    return [folder / name for folder in folders for name in ("model.safetensors", "run.json")]


def transfer_options(wildcards):
    return " ".join(f"--transfer-from {kind}={folder}" for kind, folder in transfer_folders(wildcards).items())


def probe_digest(wildcards):
    return recipes.digest(recipes.resolve_probe(project, wildcards.scale, wildcards.probe))


def probe_options(wildcards):
    return evaluation_options(wildcards, at_most=project.probe(wildcards.probe).get("images"))


def check_options(wildcards):
    """What the scale lets the checks spend."""
    checks = project.scale(wildcards.scale).get("checks", {})
    spent = " ".join(f"--{key} {checks[key]}" for key in ("steps", "queries") if key in checks)
    return f"{evaluation_options(wildcards, at_most=checks.get('limit', 1000))} {spent}"


def results_shown(scale, shown):
    """What a table or figure is made of: its runs' records, their evaluations and checks."""
    folders = [paths.run_dir(scale, run) for run in shown.runs]
    records = [folder / name for folder in folders for name in ("run.json", "history.csv")]
    evaluations = [paths.evaluation(scale, e.run, e.suite) for e in shown.evaluations]
    return records + evaluations + [paths.checks(scale, run) for run in shown.checks]


def figure_shown(scale, figure):
    """What a figure is made of: what a table is, and what probes took from models; or the cells of all tables."""
    probes = [paths.probe(scale, probe.run, probe.name) for probe in figure.probes]
    return [paths.cells(scale)] if figure.shows == "cells" else results_shown(scale, figure) + probes


def shown_digest(wildcards):
    """Changes when what declares the tables and figures of a study changes, or the code that draws them."""
    studies = [wildcards.study] if hasattr(wildcards, "study") else config["studies"]
    declared = [(project.study(name), project.published(name)) for name in studies]
    declared.append(project.claims())
    return recipes.digest([declared, project.scale(wildcards.scale), staleness.reporting_hash()])


def all_tables(scale):
    return [f"{paths.table(scale, t.study, t.name)}.csv" for t in grid(scale).tables]


def all_figures(scale):
    return [f"{paths.figure(scale, f.study, f.name)}.png" for f in grid(scale).figures]


def growing(rule, resource):
    """What the scale gives to a rule; twice and three times that for the first retries, which may have lacked it."""

    def asked_for(wildcards, attempt):
        most = config["max_resources"][resource] or float("inf")
        return min(most, min(attempt, 3) * scale_spec(wildcards.scale)["resources"][rule][resource])

    return asked_for


wildcard_constraints:
    scale=one_of(project.names("scales")),
    dataset=one_of(project.names("datasets")),
    arch=one_of(plugins.archs()),
    method=one_of(project.names("methods")),
    suite=one_of(project.suites()),
    probe=one_of(project.probes()),
    study=one_of(project.names("studies")),
    seed=r"\d+",
    item=r"[A-Za-z0-9_]+",


def all_prepared(scale):
    """The data of every run, and the published corrupted images that evaluations use."""
    found = {paths.prepared(scale, dataset) for dataset in grid(scale).datasets}
    for evaluation in grid(scale).evaluations:
        asked = SimpleNamespace(scale=scale, dataset=evaluation.run.dataset, suite=evaluation.suite)
        found.update(corrupted_images(asked))
    return sorted(found)


def all_runs(scale, methods):
    return [paths.run_dir(scale, run) / "run.json" for run in grid(scale).runs if run.method in methods]


def all_evaluated(scale):
    shown = grid(scale)
    evaluations = [paths.evaluation(scale, e.run, e.suite) for e in shown.evaluations]
    probes = [paths.probe(scale, probe.run, probe.name) for probe in shown.probes]
    return evaluations + [paths.checks(scale, run) for run in shown.checks] + probes
