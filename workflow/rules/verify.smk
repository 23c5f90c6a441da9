rule verify:
    input:
        unpack(run_files),
        data=paths.prepared("{scale}", "{dataset}"),
        refresh=lambda wildcards: refresh(paths.checks(wildcards.scale, run_of(wildcards))),
    output:
        ensure(paths.checks("{scale}", NAMED_RUN), non_empty=True),
    log:
        "logs/{scale}/verify/{dataset}/{arch}/{method}/seed{seed}.log",
    threads: config["threads"]["evaluate"]
    resources:
        gpu=1,
        mem_mb=growing("verify", "mem_mb"),
        runtime=growing("verify", "runtime"),
    params:
        options=check_options,
        run=lambda wildcards, input: Path(input.run).parent,
    shell:
        "moat verify --run {params.run} --data {input.data} --out {output} {params.options}"
        " --threads {threads} > {log} 2>&1"
