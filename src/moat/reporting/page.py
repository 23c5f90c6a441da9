"""``report.html``: one self-contained page with everything that a scale measured, and what it did not."""

from collections.abc import Sequence
from typing import Any

from moat.config import paths
from moat.config.grid import Figure, Grid, Table
from moat.config.project import Project
from moat.reporting import cards, claims, figures, pictures, problems, provenance, records, usage
from moat.reporting.labels import shared_parts, without_shared
from moat.reporting.layout import arrange, explain
from moat.reporting.results import Results
from moat.reporting.tables import (
    OUTCOMES,
    VERDICTS,
    correct_rows,
    count_published,
    count_verdicts,
    frame,
    table_frame,
    to_csv,
)

MEANINGS = {
    "reproduced": "the whole interval lies within the study's tolerance of the published number",
    "explained": "a replica of the paper's protocol gives the published number, the correct protocol does not",
    "contradicted": "the whole interval lies above or below the published number and its tolerance",
    "unverified": "a check failed, too little was measured, or budget or data are not the paper's",
    "not run": "there is no measurement; the reason is given",
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
    found = {**_overview(grid, cells, sections), **_records(grid, results)}
    details = {key: card for section in sections for table in section["tables"] for key, card in table["cards"].items()}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **found,
            scale_name=grid.scale,
            scale=scale,
            claims=[_claim(claim, sections) for claim in claims.evaluate(project, grid, cells)],
            studies=sections,
            cards=cards.embed({**details, **_record_cards(found)}),
            make_all=f"snakemake --cores all --config scale={grid.scale}",
            results_path=str(paths.results(grid.scale)),
            page_path=str(paths.report(grid.scale)),
        )
    )


def _overview(grid: Grid, cells, sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "outcomes": {name: (count, OUTCOMES[name]) for name, count in count_published(cells).items()},
        "meanings": MEANINGS,
        "counts": _counts(cells),
        "cell_count": len(correct_rows(cells)),
        "by_study": [(section, count_published(cells[cells["study"] == section["name"]])) for section in sections],
        "substitutes": _substitutes(grid),
    }


def _records(grid: Grid, results: Results) -> dict[str, Any]:
    """What ran, what it was checked for, what is missing or not to be trusted."""
    names, checks = records.checks(grid, results)
    runs, evaluations = records.runs(grid, results), records.evaluations(grid, results)
    return {
        "check_names": names,
        "checks": checks,
        "runs": runs,
        "evaluations": evaluations,
        "stale": [record["name"] for record in [*runs, *evaluations, *checks] if record["stale"]],
        "wall": records.duration(sum(run["wall_seconds"] or 0 for run in runs)),
        "usage": usage.summarise(grid, results),
        "problems": (wrong := problems.find(grid, results)),
        "problem_counts": problems.count(wrong),
        "not_run": records.not_run(grid, results),
    }


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
    layout, name = arrange(table, content, results), f"{table.study}-{table.name}"
    return {
        "id": name,
        "content": content,
        "layout": layout,
        "shared": shared_parts(table.rows),
        "labels": without_shared(table.rows),
        "counts": _counts(content),
        "cards": cards.of_table(name, layout, results),
        "csv": pictures.data_address("text/csv;charset=utf-8", to_csv(content).encode()),
        "command": layout.command,
    }


def _figure(figure: Figure, results: Results) -> dict[str, Any]:
    base = paths.figure(results.scale, figure.study, figure.name)
    png, csv = (results.file(f"{base}.{suffix}") for suffix in ("png", "csv"))
    return {
        "id": f"{figure.study}-{figure.name}",
        "title": figure.title,
        "caption": figure.caption,
        "notes": figures.notes(figure, results),
        "image": pictures.read(png) if png.exists() else None,
        "csv": pictures.table(csv, provenance.address(f"{base}.csv", results.scale)) if csv.exists() else None,
        "pdf": provenance.address(f"{base}.pdf", results.scale),
        "command": f"snakemake --cores all {base}.png --config scale={results.scale}",
    }


def _claim(claim: dict[str, Any], sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """With its reasons as sentences and its evidence as places on the page."""
    layouts = {table["id"]: table["layout"].table for section in sections for table in section["tables"]}

    def place(cell):
        table = layouts[cell["id"]]
        return cards.cell_id(cell["id"], table.rows.index(cell["row"]), table.columns.index(cell["column"]))

    return {
        **claim,
        "reasons": [explain(reason).removeprefix("unverified: ") for reason in claim["reasons"]]
        if claim["measured"]
        else claim["reasons"],
        "evidence": [{**cell, "place": place(cell)} for cell in claim["evidence"]],
    }


def _record_cards(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cards of checks and runs, under the ids that the template gives them."""
    details = {
        f"check-{row}-{column}": cards.card(
            f"{run['name']}: {name}",
            [("outcome", "passed" if check["passed"] else "failed"), *((key, check[key]) for key in _CHECK)],
        )
        for row, run in enumerate(found["checks"])
        for column, name in enumerate(found["check_names"])
        if (check := run["checks"].get(name))
    }
    for number, run in enumerate(found["runs"]):
        lines = [(what, run[key]) for what, key in _RUN.items()]
        details[f"run-{number}"] = cards.card(run["name"], [*lines, *sorted(run["versions"].items())])
    return details


_CHECK = ("message", "value", "limit")
_RUN = {
    "recipe version": "recipe_version",
    "peak memory": "memory",
    "model sha256": "model_sha256",
    "data sha256": "data_sha256",
    "git commit": "git_commit",
}


def _counts(content) -> list[tuple[str, int]]:
    counts = count_verdicts(content)
    return [(name, counts[name]) for name in (*VERDICTS, "measured") if name in counts]


def _substitutes(grid: Grid) -> list[tuple[str, str, str]]:
    """(kind, original, stand-in), each once."""
    cells = [cell for table in grid.tables for cell in table.cells]
    cells += [line.cell for figure in grid.figures for line in figure.lines]
    return list(dict.fromkeys((kind, old, getattr(cell, kind)) for cell in cells for kind, old in cell.substitutes))


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
