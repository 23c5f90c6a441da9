# Cheap, so rebuilt whenever what they show or the code that draws them has changed.
# Local, where Snakemake itself runs: they take seconds.
rule tabulate:
    input:
        inputs.table_inputs,
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
    log:
        "logs/{scale}/tabulate/{study}-{item}.log",
    # As soon as it can be made: it costs little, and somebody waits for it.
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        digest=inputs.shown_digest,
        stale=inputs.stale_of_table,
        results=lambda wildcards, output: Path(output.csv).parents[2],
    shell:
        moat(
            "tabulate --results {params.results:q} --scale {wildcards.scale:q}"
            " --study {wildcards.study:q} --table {wildcards.item:q} > {log:q} 2>&1"
        )


rule draw:
    input:
        inputs.figure_inputs,
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
    log:
        "logs/{scale}/draw/{study}-{item}.log",
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        digest=inputs.shown_digest,
        stale=inputs.stale_of_figure,
        results=lambda wildcards, output: Path(output.csv).parents[2],
    shell:
        moat(
            "draw --results {params.results:q} --scale {wildcards.scale:q}"
            " --study {wildcards.study:q} --figure {wildcards.item:q} > {log:q} 2>&1"
        )


rule cells:
    input:
        inputs.tables,
    output:
        cells=ensure(paths.cells("{scale}"), non_empty=True),
        metrics=ensure(paths.metrics("{scale}"), non_empty=True),
        claims=multiext(str(paths.claims("{scale}")), ".csv", ".md", ".tex"),
        robustbench=ensure(paths.robustbench("{scale}"), non_empty=True),
    log:
        "logs/{scale}/cells.log",
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        digest=inputs.shown_digest,
        studies=",".join(config["studies"]),
        results=lambda wildcards, output: Path(output.cells).parents[2],
    shell:
        moat(
            "tabulate --results {params.results:q} --scale {wildcards.scale:q}"
            " --cells --studies {params.studies:q} > {log:q} 2>&1"
        )


rule page:
    input:
        inputs.tables,
        inputs.figures,
        cells=paths.cells("{scale}"),
    output:
        report(paths.report("{scale}"), caption="../report/page.rst", category="Report"),
    log:
        "logs/{scale}/report.log",
    priority: 20
    localrule: True
    conda:
        "../../envs/conda.yaml"
    params:
        digest=inputs.shown_digest,
        stale=inputs.stale_of_page,
        studies=",".join(config["studies"]),
        results=lambda wildcards, output: Path(output[0]).parents[1],
    shell:
        moat(
            "report --results {params.results:q} --scale {wildcards.scale:q}"
            " --studies {params.studies:q} > {log:q} 2>&1"
        )
