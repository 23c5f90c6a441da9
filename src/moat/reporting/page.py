"""``report.html``: one self-contained page with everything that a scale measured, and what it did not."""

import base64
from collections.abc import Sequence
from typing import Any

from moat.config import paths
from moat.config.grid import Figure, Grid, Table
from moat.config.project import Project
from moat.reporting import claims, figures, measures, provenance, records
from moat.reporting.layout import Layout, arrange, explain
from moat.reporting.results import Results
from moat.reporting.tables import VERDICTS, correct_rows, count_verdicts, frame, table_frame, to_csv

MEANINGS = {
    "reproduced": "the whole interval lies within the study's tolerance of the published number",
    "explained": "the replica of the paper's protocol gives the published number, the correct protocol does not",
    "higher": "the whole interval lies above the tolerance band",
    "lower": "the whole interval lies below the tolerance band",
    "unverified": "a gate failed, too little was measured, or budget or data are not the paper's",
    "not-run": "there is no measurement; the reason is given",
    "measured": "nothing was published to compare with, and every gate passed",
}


def render(project: Project, grid: Grid, studies: Sequence[str], results: Results) -> str:
    """The page's HTML; equal for equal results, whenever and wherever it is rendered.

    Everything is computed from the rows of the evaluations; figures are those that ``moat draw`` left.

    Raises:
        DataError: a result that is damaged; names the file.
    """
    scale = project.scale(grid.scale)
    for table in grid.tables:
        results.expect(table.cells)
    sections = [_study(project, name, grid, results, scale) for name in studies]
    contents = [table["content"] for section in sections for table in section["tables"]]
    cells = frame([record for content in contents for record in content.to_dict("records")])
    names, gates = records.gates(grid, results)
    runs, evaluations = records.runs(grid, results), records.evaluations(grid, results)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            scale_name=grid.scale,
            scale=scale,
            substitutes=_substitutes(grid),
            counts=_counts(cells),
            cell_count=len(correct_rows(cells)),
            meanings=MEANINGS,
            # See moat.reporting.claims for what a claim holds; they open the page.
            claims=claims.evaluate(project, grid, cells),
            studies=sections,
            gate_names=names,
            gates=gates,
            runs=runs,
            evaluations=evaluations,
            stale=[record["name"] for record in [*runs, *evaluations, *gates] if record["stale"]],
            wall=records.duration(sum(run["wall_seconds"] or 0 for run in runs)),
            not_run=records.not_run(grid, results),
            make_all=f"snakemake --cores all --config scale={grid.scale}",
            page_path=str(paths.report(grid.scale)),
        )
    )


def _study(project: Project, name: str, grid: Grid, results: Results, scale) -> dict[str, Any]:
    spec = project.study(name)
    return {
        "name": name,
        "title": spec["title"],
        "description": spec["description"],
        "paper": spec.get("paper"),
        "tolerance": spec["tolerance"],
        "tables": [_table(table, results, scale) for table in grid.tables if table.study == name],
        "figures": [_figure(figure, results) for figure in grid.figures if figure.study == name],
    }


def _table(table: Table, results: Results, scale) -> dict[str, Any]:
    content = table_frame(table, results, scale)
    layout = arrange(table, content, results)
    return {
        "id": f"{table.study}-{table.name}",
        "content": content,
        "layout": layout,
        "counts": _counts(content),
        "details": _details(layout, results),
        "csv": _data_uri("text/csv;charset=utf-8", to_csv(content).encode()),
        "command": layout.command,
    }


def _details(layout: Layout, results: Results) -> list[list[list[tuple[str, str]]]]:
    """Where each number comes from: for each row and column, (what, value) pairs."""
    return [[_provenance(entry, results) for entry in entries] for _, entries in layout.rows]


def _provenance(entry, results: Results) -> list[tuple[str, str]]:
    cell, values, unit = entry.cell, entry.values, f" {measures.get(entry.cell.measure).UNIT}".rstrip()
    pairs = [("verdict", entry.verdict or "measured"), ("measured", entry.measured and f"{entry.measured}{unit}")]
    if values["measured_std"] is not None:
        pairs.append(("between seeds", f"standard deviation {values['measured_std']:.2f}"))
    pairs += [("published", entry.published and f"{entry.published}{unit}, tolerance {cell.tolerance:g}")]
    pairs += [(f"under {protocol}", number) for protocol, number, _ in entry.flawed]
    if entry.measured is None:
        return [(what, value) for what, value in [*pairs, ("why", entry.reason), ("made by", entry.command)] if value]
    reasons = (values["gates_failed"] or "").split(";") if values["gates_failed"] else []
    pairs += [("why", explain(reason).removeprefix("unverified: ")) for reason in reasons]
    pairs += [
        ("metric", f"{values['metric']}, protocol {cell.protocol}"),
        ("examples", values["n"] and values["seeds"] and f"{values['n']} per seed"),
        ("seeds", values["seeds"] and values["seeds"].replace(";", ", ")),
        *provenance.files(cell, results),
        ("made by", entry.command),
    ]
    return [(what, value) for what, value in pairs if value]


def _figure(figure: Figure, results: Results) -> dict[str, Any]:
    base = paths.figure(results.scale, figure.study, figure.name)
    png, csv = (results.file(f"{base}.{suffix}") for suffix in ("png", "csv"))
    return {
        "id": f"{figure.study}-{figure.name}",
        "title": figure.title,
        "caption": figure.caption,
        "notes": figures.notes(figure, results),
        "image": _data_uri("image/png", png.read_bytes()) if png.exists() else None,
        "csv": _data_uri("text/csv;charset=utf-8", csv.read_bytes()) if csv.exists() else None,
        "command": f"snakemake --cores all {base}.png --config scale={results.scale}",
    }


def _counts(content) -> list[tuple[str, int]]:
    counts = count_verdicts(content)
    return [(name, counts[name]) for name in (*VERDICTS, "measured") if name in counts]


def _substitutes(grid: Grid) -> list[tuple[str, str, str]]:
    """(kind, original, stand-in), each once."""
    cells = [cell for table in grid.tables for cell in table.cells]
    cells += [line.cell for figure in grid.figures for line in figure.lines]
    return list(dict.fromkeys((kind, old, getattr(cell, kind)) for cell in cells for kind, old in cell.substitutes))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _environment():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moat.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quantity"] = records.quantity
    environment.filters["points"] = lambda fraction: "–" if fraction is None else f"{100 * fraction:.1f}"
    return environment
