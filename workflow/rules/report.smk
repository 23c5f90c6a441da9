# Cheap, so rebuilt whenever what they show or the code that draws them has changed.
# Local, where Snakemake itself runs: they take seconds.
rule tabulate:
    input:
        inputs.shown_inputs("table"),
        again=made_again("table"),
    output:
        csv=ensure(f"{paths.table('{scale}', '{study}', '{item}')}.csv", non_empty=True),
        tex=f"{paths.table('{scale}', '{study}', '{item}')}.tex",
        md=report(
            f"{paths.table('{scale}', '{study}', '{item}')}.md",
            caption="../report/table.rst",
            category="Tables",
            subcategory="{study}",
            labels={"table": "{item}"},
        ),
        record=f"{paths.table('{scale}', '{study}', '{item}')}.json",
    log:
        "logs/{scale}/tabulate/{study}-{item}.log",
    # As soon as it can be made: it costs little, and somebody waits for it.
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        results=lambda wildcards, output: Path(output.csv).parents[2],
    shell:
        moat(
            "tabulate --results {params.results:q} --scale {wildcards.scale:q}"
            " --study {wildcards.study:q} --table {wildcards.item:q}"
        )


rule draw:
    input:
        inputs.shown_inputs("figure"),
        again=made_again("figure"),
    output:
        csv=ensure(f"{paths.figure('{scale}', '{study}', '{item}')}.csv", non_empty=True),
        pdf=f"{paths.figure('{scale}', '{study}', '{item}')}.pdf",
        png=report(
            f"{paths.figure('{scale}', '{study}', '{item}')}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{study}",
            labels={"figure": "{item}"},
        ),
        record=f"{paths.figure('{scale}', '{study}', '{item}')}.json",
    log:
        "logs/{scale}/draw/{study}-{item}.log",
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        results=lambda wildcards, output: Path(output.csv).parents[2],
    shell:
        moat(
            "draw --results {params.results:q} --scale {wildcards.scale:q}"
            " --study {wildcards.study:q} --figure {wildcards.item:q}"
        )


# Of some studies only: files of their own, beside those of all studies.
rule cells:
    input:
        inputs.shown_inputs("cells"),
        again=made_again("cells"),
    output:
        cells=ensure(paths.cells("{scale}", inputs.selection), non_empty=True),
        metrics=ensure(paths.metrics("{scale}", inputs.selection), non_empty=True),
        claims=multiext(str(paths.claims("{scale}", inputs.selection)), ".csv", ".md", ".tex"),
        robustbench=ensure(paths.robustbench("{scale}", inputs.selection), non_empty=True),
        record=paths.cells("{scale}", inputs.selection).with_suffix(".json"),
    log:
        f"logs/{{scale}}/cells{inputs.selection}.log",
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        studies=",".join(config["studies"]),
        results=lambda wildcards, output: Path(output.cells).parents[2],
    shell:
        moat("tabulate --cells --results {params.results:q} --scale {wildcards.scale:q} --studies {params.studies:q}")


rule page:
    input:
        inputs.shown_inputs("page"),
        again=made_again("page"),
    output:
        report(
            paths.report("{scale}", inputs.selection),
            caption="../report/page.rst",
            category="Report",
        ),
        record=paths.report("{scale}", inputs.selection).with_suffix(".json"),
    log:
        f"logs/{{scale}}/report{inputs.selection}.log",
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        studies=",".join(config["studies"]),
        results=lambda wildcards, output: Path(output[0]).parents[1],
    shell:
        moat("report --results {params.results:q} --scale {wildcards.scale:q} --studies {params.studies:q}")
