# Parts of the pipeline by name, at the scale and for the studies of the configuration: `snakemake all_experts`. The
# stages of dvc.yaml ask for these: all that a stage hands over must be made when it ends.


rule all_data:
    input:
        lambda wildcards: inputs.all_prepared(config["scale"]),
    localrule: True


rule all_experts:
    input:
        lambda wildcards: inputs.all_runs(config["scale"], "expert"),
    localrule: True


rule all_methods:
    input:
        lambda wildcards: inputs.all_runs(config["scale"], "method"),
    localrule: True


rule all_models:
    input:
        rules.all_experts.input,
        rules.all_methods.input,
    localrule: True


rule all_evaluations:
    input:
        lambda wildcards: inputs.all_evaluated(config["scale"]),
    localrule: True
