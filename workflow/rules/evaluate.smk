rule evaluate:
    input:
        unpack(run_files),
        data=paths.prepared("{scale}", "{dataset}"),
        transfer=transfer_files,
        corrupted=corrupted_images,
        refresh=refresh_evaluation,
    output:
        rows=ensure(EVALUATION.with_suffix(".parquet"), non_empty=True),
        summary=ensure(EVALUATION.with_suffix(".json"), non_empty=True),
    log:
        "logs/{scale}/evaluate/{dataset}/{arch}/{method}/seed{seed}/{suite}.log",
    benchmark:
        "results/{scale}/benchmarks/evaluate/{dataset}/{arch}/{method}/seed{seed}/{suite}.tsv"
    threads: config["threads"]["evaluate"]
    resources:
        gpu=1,
        mem_mb=growing("evaluate", "mem_mb"),
        runtime=growing("evaluate", "runtime"),
    params:
        digest=evaluation_digest,
        options=evaluation_options,
        transfer=transfer_options,
        run=lambda wildcards, input: Path(input.run).parent,
    shell:
        "moat evaluate --run {params.run} --suite {wildcards.suite} --data {input.data} --out {output.rows}"
        " --scale {wildcards.scale} {params.options} {params.transfer} --threads {threads} > {log} 2>&1"
