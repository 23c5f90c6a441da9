rule evaluate:
    input:
        unpack(inputs.run_files),
        data=paths.prepared("{scale}", "{dataset}"),
        corrupted=inputs.corrupted_images,
        again=made_again("evaluation"),
    output:
        rows=ensure(EVALUATION.with_suffix(".parquet"), non_empty=True),
        summary=ensure(EVALUATION.with_suffix(".json"), non_empty=True),
    log:
        LOGS["evaluate"],
    wildcard_constraints:
        suite=one_of(inputs.suites(transfer=False)),
    priority: inputs.priority("evaluation", 0)
    conda:
        "../../envs/conda.yaml"
    threads: config["threads"]["evaluate"]
    resources:
        gpu=1,
        mem_mb=inputs.resource("evaluate", "mem_mb"),
        runtime=inputs.resource("evaluate", "runtime"),
    params:
        digest=inputs.evaluation_digest,
        options=inputs.evaluation_options,
        transfer=[],
        run=lambda wildcards, input: Path(input.run).parent,
    shell:
        moat(
            "evaluate --run {params.run:q} --suite {wildcards.suite:q} --data {input.data:q} --out {output.rows:q}"
            " --scale {wildcards.scale:q} {params.options:q} {params.transfer:q} --threads {threads:q}"
        )


# Needs a second run, on which the examples are made: where that is trained again, only this is made again.
use rule evaluate as transfer with:
    input:
        unpack(inputs.run_files),
        data=paths.prepared("{scale}", "{dataset}"),
        transfer=inputs.transfer_files,
        again=made_again("evaluation"),
    wildcard_constraints:
        suite=one_of(inputs.suites(transfer=True)),
    params:
        digest=inputs.evaluation_digest,
        options=inputs.evaluation_options,
        transfer=inputs.transfer_options,
        run=lambda wildcards, input: Path(input.run).parent,
