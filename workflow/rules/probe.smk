# What figures need of a model itself; made once, so that editing a figure runs no model again.
rule probe:
    input:
        unpack(run_files),
        data=paths.prepared("{scale}", "{dataset}"),
        refresh=refresh_probe,
    output:
        arrays=ensure(PROBE, non_empty=True),
        record=ensure(PROBE.with_suffix(".json"), non_empty=True),
    log:
        "logs/{scale}/probe/{dataset}/{arch}/{method}/seed{seed}/{probe}.log",
    retries: 2
    threads: config["threads"]["evaluate"]
    resources:
        gpu=1,
        mem_mb=growing("evaluate", "mem_mb"),
        runtime=growing("evaluate", "runtime"),
    params:
        digest=probe_digest,
        options=probe_options,
        run=lambda wildcards, input: Path(input.run).parent,
    shell:
        "moat probe --run {params.run} --probe {wildcards.probe} --data {input.data} --out {output.arrays}"
        " {params.options} --threads {threads} > {log} 2>&1"
