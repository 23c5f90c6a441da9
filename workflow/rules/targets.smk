# Parts of the pipeline by name, at the scale and for the studies of the configuration: `snakemake all_experts`. The
# stages of dvc.yaml ask for these: all that a stage hands over must be made when it ends.


localrules:
    all_data,
    all_experts,
    all_methods,
    all_models,
    all_evaluations,


rule all_data:
    input:
        lambda wildcards: inputs.all_prepared(config["scale"]),


rule all_experts:
    input:
        lambda wildcards: inputs.all_runs(config["scale"], "expert"),


rule all_methods:
    input:
        lambda wildcards: inputs.all_runs(config["scale"], "method"),


rule all_models:
    input:
        rules.all_experts.input,
        rules.all_methods.input,


rule all_evaluations:
    input:
        lambda wildcards: inputs.all_evaluated(config["scale"]),
