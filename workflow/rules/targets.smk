# Parts of the pipeline by name, at the scale and for the studies of the configuration: `snakemake all_experts`. The
# stages of dvc.yaml ask for these: all that a stage hands over must be made when it ends.
from types import SimpleNamespace


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
    probes = {paths.probe(scale, probe.run, probe.name) for figure in shown.figures for probe in figure.probes}
    return evaluations + [paths.gates(scale, run) for run in shown.gates] + sorted(probes)


localrules:
    all_data,
    all_experts,
    all_methods,
    all_models,
    all_evaluations,


rule all_data:
    input:
        lambda wildcards: all_prepared(config["scale"]),


rule all_experts:
    input:
        lambda wildcards: all_runs(config["scale"], methods_of_role("expert")),


rule all_methods:
    input:
        lambda wildcards: all_runs(config["scale"], methods_of_role("method")),


rule all_models:
    input:
        rules.all_experts.input,
        rules.all_methods.input,


rule all_evaluations:
    input:
        lambda wildcards: all_evaluated(config["scale"]),
