rule train:
    input:
        data=paths.prepared("{scale}", "{dataset}"),
        initial=inputs.initial_models,
        again=made_again("run"),
    output:
        model=ensure(RUN / "model.safetensors", non_empty=True),
        last=ensure(RUN / "last.safetensors", non_empty=True),
        history=ensure(RUN / "history.csv", non_empty=True),
        run=ensure(RUN / "run.json", non_empty=True),
    log:
        LOGS["train"],
    wildcard_constraints:
        method=one_of(inputs.methods_of_role("method")),
    # Trainings are what everything waits for: before evaluations of what is trained already.
    priority: inputs.priority("run", 5)
    conda:
        "../../envs/conda.yaml"
    threads: config["threads"]["train"]
    resources:
        gpu=1,
        mem_mb=inputs.resource("train", "mem_mb"),
        runtime=inputs.resource("train", "runtime"),
    params:
        digest=inputs.run_digest,
        initialize_from=inputs.initialize_options,
        out=lambda wildcards, output: Path(output.run).parent,
    shell:
        moat(
            "train --dataset {wildcards.dataset:q} --arch {wildcards.arch:q} --method {wildcards.method:q}"
            " --seed {wildcards.seed:q} --scale {wildcards.scale:q} --data {input.data:q} --out {params.out:q}"
            " {params.initialize_from:q} --threads {threads:q}"
        )
