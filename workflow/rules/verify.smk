rule verify:
    input:
        unpack(inputs.run_files),
        data=paths.prepared("{scale}", "{dataset}"),
        again=made_again("check"),
    output:
        ensure(paths.checks("{scale}", MEASURED_WILDCARDS), non_empty=True),
    log:
        LOGS["verify"],
    # Longer than an evaluation at small scales: a long job that starts last is waited for by all other cores.
    priority: inputs.priority("check", 2)
    conda:
        "../../envs/conda.yaml"
    threads: config["threads"]["evaluate"]
    resources:
        gpu=1,
        mem_mb=inputs.resource("verify", "mem_mb"),
        runtime=inputs.resource("verify", "runtime"),
    params:
        digest=inputs.checks_digest,
        options=inputs.check_options,
        run=lambda wildcards, input: Path(input.run).parent,
    shell:
        moat(
            "verify --run {params.run:q} --data {input.data:q} --out {output:q} {params.options:q}"
            " --threads {threads:q}"
        )
