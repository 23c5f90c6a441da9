# What figures need of a model itself; made once, so that editing a figure runs no model again.
rule probe:
    input:
        unpack(inputs.run_files),
        data=paths.prepared("{scale}", "{dataset}"),
        again=made_again("probe"),
    output:
        arrays=ensure(PROBE, non_empty=True),
        record=ensure(PROBE.with_suffix(".json"), non_empty=True),
    log:
        LOGS["probe"],
    conda:
        "../../envs/conda.yaml"
    threads: config["threads"]["evaluate"]
    resources:
        gpu=1,
        mem_mb=inputs.resource("probe", "mem_mb"),
        runtime=inputs.resource("probe", "runtime"),
    params:
        digest=inputs.probe_digest,
        options=inputs.probe_options,
        run=lambda wildcards, input: Path(input.run).parent,
    shell:
        moat(
            "probe --run {params.run:q} --probe {wildcards.probe:q} --data {input.data:q} --out {output.arrays:q}"
            " {params.options:q} --threads {threads:q}"
        )
