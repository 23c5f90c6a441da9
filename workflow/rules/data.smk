rule fetch:
    # Only the manifest is an output: Snakemake would delete partial downloads, and they are resumed. Without `ensure`:
    # with it, `moat pull` could not bless results made from downloads that are not here.
    output:
        paths.manifest(config["data"]["resources"], "{dataset}"),
    log:
        "logs/fetch/{dataset}.log",
    # Everything waits for the data.
    priority: 50
    # Compute nodes often have no internet.
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        into=lambda wildcards, output: Path(output[0]).parent,
    shell:
        moat("fetch {wildcards.dataset:q} --into {params.into:q}")


rule prepare:
    input:
        paths.manifest(config["data"]["resources"], "{dataset}"),
    output:
        ensure(paths.prepared("{scale}", "{dataset}"), non_empty=True),
    log:
        LOGS["prepare"],
    priority: 50
    conda:
        "../../envs/conda.yaml"
    threads: config["threads"]["prepare"]
    resources:
        mem_mb=inputs.prepare_memory,
        runtime=60,
    params:
        digest=inputs.data_digest,
        source=lambda wildcards, input: Path(input[0]).parent,
    shell:
        moat("prepare {wildcards.dataset:q} --from {params.source:q} --scale {wildcards.scale:q} --out {output:q}")
