"""``report.html``: one self-contained page with everything that a scale measured, and what it did not."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2

from moat.config import paths
from moat.config.grid import Figure, Grid, Table
from moat.config.project import Project
from moat.config.status import Statuses
from moat.reporting import (
    cards,
    claims,
    claims_tables,
    figures,
    formatting,
    pictures,
    problems,
    provenance,
    records,
    summary,
    usage,
)
from moat.reporting.labels import spelled
from moat.reporting.layout import Layout, arrange, explain_distrust, is_about_scale
from moat.reporting.results import Results
from moat.reporting.tables import (
    OUTCOMES,
    VERDICTS,
    correct_rows,
    count_published,
    count_verdicts,
    distrusted,
    frame,
    table_frame,
    to_csv,
)

MEANINGS = {
    "reproduced": "the whole interval lies within the study's tolerance around the published number",
    "explained": "a replica of the paper's protocol gives the published number, the correct protocol does not",
    "contradicted": "the whole interval lies outside the tolerance around the published number",
    "unverified": "a check failed, too little was measured, or budget or data are not the paper's",
    "not run": "there is no measurement; the reason is given",
}
# Characters of a caption above which it keeps a table off the screen.
LONG_CAPTION = 600
# What the card of a run shows of its record, under which name.
_RUN_CARD = {
    "recipe version": "recipe_version",
    "epoch selected by": "selected_by",
    "selected epoch": "best_epoch",
    "peak memory": "memory",
    "model sha256": "model_sha256",
    "data sha256": "data_sha256",
    "git commit": "git_commit",
}


def render(project: Project, grid: Grid, statuses: Statuses, results: Results) -> str:
    """The page's HTML; equal for equal results, whenever and wherever it is rendered.

    Everything is computed from the rows of the evaluations; the figures are those that ``moat draw`` left.

    Raises:
        DataError: a result that is damaged; names the file.
    """
    scale = project.scale(grid.scale)
    for table in grid.tables:
        results.expect(table.cells)
    ran = _ran(grid, results, statuses)
    sections = [_study(project, name, grid, results, scale, ran) for name in statuses.studies]
    # A scale may leave out all that a study has.
    sections = [section for section in sections if section["tables"] or section["figures"]]
    tables = [table for section in sections for table in section["tables"]]
    cells = frame(record for table in tables for record in table["content"].to_dict("records"))
    claimed = [_claim(claim, tables) for claim in claims.evaluate(project, grid, cells, statuses.studies)]
    first = next((table for table in tables if table["id"] == summary.LEADERBOARD and not table["idle"]), None)
    details = {key: card for table in tables for key, card in table["cards"].items()}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moat.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quantity"] = formatting.quantity
    environment.filters["points"] = lambda fraction: "–" if fraction is None else f"{100 * fraction:.1f}"
    environment.filters["spelled"] = spelled
    environment.filters["split_caption"] = _split_caption
    environment.tests["about_scale"] = lambda note: is_about_scale(note[1])
    return environment.get_template("page.html.j2").render(
        **_overview(grid, cells, sections),
        **ran,
        scale_name=grid.scale,
        scale=scale,
        claims=claimed,
        sentences=summary.sentences(project, statuses.studies, claimed, first and first["layout"]),
        leaderboard=first,
        published=_published(sections),
        studies=[section for section in sections if section["tables"] or section["figures"]],
        cards=cards.embed({**details, **_record_cards(ran)}),
        make_all=f"snakemake --cores all --config scale={grid.scale}",
        results_path=str(paths.results(grid.scale)),
        page_path=str(paths.report(grid.scale)),
        # As seen from where the page lies.
        glossary=f"{_up(results)}/docs/glossary.md" if (project.root / "docs/glossary.md").exists() else None,
    )


def _split_caption(caption: str) -> tuple[str, str]:
    """The first sentence of a long caption and the rest, which is folded; a short one is shown as it is."""
    first, end, rest = caption.partition(". ")
    return (first + ".", rest) if end and len(caption) > LONG_CAPTION else (caption, "")


def _up(results: Results) -> str:
    """From a scale's folder to the project's root, also for a copy of the results elsewhere."""
    depth = len(paths.evidence().parts) if results.is_evidence else 1
    return "/".join([".."] * (depth + 1))


def _published(sections: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The figure of published against measured numbers, if there is anything in it."""
    shown = (figure for section in sections for figure in section["figures"] if not figure["idle"])
    return next((figure for figure in shown if figure["id"] == summary.PUBLISHED), None)


def _study(project: Project, name: str, grid: Grid, results: Results, scale, ran) -> dict[str, Any]:
    spec = project.study(name)
    return {
        "name": name,
        "title": spec["title"],
        "description": spec["description"],
        "paper": spec.get("paper"),
        "reference": summary.reference(spec),
        "tolerance": spec["tolerance"],
        "tables": [_table(table, results, scale) for table in grid.tables if table.study == name],
        # That everything is stale, the page says once.
        "figures": [
            _figure(figure, results, stale=ran["stale_shown"]) for figure in grid.figures if figure.study == name
        ],
    }


def _table(table: Table, results: Results, scale) -> dict[str, Any]:
    content = table_frame(table, results, scale)
    layout, name = arrange(table, content, results), f"{table.study}-{table.name}"
    return {
        "id": name,
        "content": content,
        "layout": layout,
        # Whether nothing of it was measured.
        "idle": not any(entry.measured for _, entries in layout.rows for entry in entries),
        "shared": layout.shared,
        "labels": layout.labels,
        "counts": _table_counts(layout),
        "cards": cards.of_table(name, layout, results),
        "csv": pictures.data_address("text/csv;charset=utf-8", to_csv(content).encode()),
        "command": layout.command,
    }


def _figure(figure: Figure, results: Results, *, stale: bool) -> dict[str, Any]:
    base = paths.figure(results.scale, figure.study, figure.name)
    png, csv = (results.file(f"{base}.{suffix}") for suffix in ("png", "csv"))
    return {
        "id": f"{figure.study}-{figure.name}",
        "title": figure.title,
        "caption": figure.caption,
        "notes": figures.notes(figure, results, stale=stale),
        "idle": not figures.shows_something(figure, results),
        "image": pictures.read(png) if png.exists() else None,
        "csv": pictures.table(csv, provenance.address(f"{base}.csv", results.scale)) if csv.exists() else None,
        "pdf": provenance.address(f"{base}.pdf", results.scale),
        "command": provenance.command([f"{base}.png"], results.scale),
    }


def _claim(claim: dict[str, Any], tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """With its reasons as phrases and its evidence as places on the page."""
    shown = {table["id"]: table["layout"].table for table in tables}

    def is_shown(cell) -> bool:
        table = shown.get(cell["id"])
        return table is not None and cell["row"] in table.rows and cell["column"] in table.columns

    def place(cell) -> str:
        table = shown[cell["id"]]
        return cards.cell_id(cell["id"], table.rows.index(cell["row"]), table.columns.index(cell["column"]))

    reasons = claim["reasons"]
    if claim["measured"]:
        # That a whole scale is not comparable, and which results are stale, the page says once.
        shown_once = distrusted({"checks_failed": ";".join(reasons)}) if claim["indication"] else reasons
        reasons = map(explain_distrust, shown_once)
    evidence = [{**cell, "place": place(cell)} for cell in claim["evidence"] if is_shown(cell)]
    basis = claims_tables.basis(claim) if claim["indication"] else []
    said = {"reasons": list(reasons), "evidence": evidence, "basis": basis}
    return {**claim, **said, "idle": not claim["measured"] and not (claim["indication"] or {}).get("number")}


def _counts(content) -> list[tuple[str, int]]:
    counts = count_verdicts(content)
    return [(name, counts[name]) for name in (*VERDICTS, "measured") if name in counts]


def _table_counts(layout: Layout) -> list[tuple[str, str]]:
    """(verdict, how many cells have it, in words) of a table. What is no number is not reproduced, it matches."""
    entries = [entry for _, row in layout.rows for entry in row]
    matching = sum(entry.verdict == "reproduced" and not entry.is_counted for entry in entries)
    absent = sum(entry.is_not_applicable for entry in entries)
    counts = Counter(entry.verdict or "measured" for entry in entries)
    said = {name: f"{counts[name]} {name.replace('-', ' ')}" for name in (*VERDICTS, "measured") if counts[name]}
    if matching:
        some = f"{counts['reproduced'] - matching} reproduced, " if matching < counts["reproduced"] else ""
        said["reproduced"] = f"{some}{matching} as the paper says"
    if absent:
        some = f"{counts['not-run'] - absent} not run, " if absent < counts["not-run"] else ""
        said["not-run"] = f"{some}{absent} n/a"
    return list(said.items())


def _overview(grid: Grid, cells, sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shown = [cell for table in grid.tables for cell in table.cells]
    shown += [line.cell for figure in grid.figures for line in figure.lines]
    return {
        "outcomes": {name: (count, OUTCOMES[name]) for name, count in count_published(cells).items()},
        "meanings": MEANINGS,
        "counts": _counts(cells),
        "cell_count": len(correct_rows(cells)),
        "by_study": [(section, count_published(cells[cells["study"] == section["name"]])) for section in sections],
        # (kind, original, stand-in), each once.
        "substitutes": list(
            dict.fromkeys((kind, old, getattr(cell, kind)) for cell in shown for kind, old in cell.substitutes)
        ),
    }


def _ran(grid: Grid, results: Results, statuses: Statuses) -> dict[str, Any]:
    """What ran, what it was checked for, what is missing or must not be trusted."""
    names, checks = records.checks(grid, results)
    runs, evaluations = records.runs(grid, results), records.evaluations(grid, results)
    wrong, made = problems.find(grid, results), [*runs, *evaluations, *checks]
    shared, own = records.deviations(runs)
    return {
        "check_names": names,
        "checks": checks,
        "runs": runs,
        "shared_deviations": shared,
        "deviations": own,
        # A run's number in the list -> that of its own deviations.
        "deviations_of": {run: number for number, each in enumerate(own) for run in each["runs"]},
        "evaluations": evaluations,
        "stale": (stale := [record["name"] for record in made if record["stale"]]),
        # Where everything is stale, a column that says so of every row says nothing.
        "stale_shown": 0 < len(stale) < len(made),
        "wall": formatting.duration(sum(run["wall_seconds"] or 0 for run in runs)),
        "usage": usage.summarise(grid, results, statuses),
        "problems": wrong,
        "problem_counts": problems.count(wrong),
        "not_run": records.not_run(grid, results),
    }


def _record_cards(ran: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cards of checks and runs, under the ids that the template gives them."""
    details = {
        f"check-{row}-{column}": cards.card(
            f"{run['name']}: {name}",
            [
                ("outcome", check["state"].replace("-", " ")),
                *((key, check[key]) for key in ("message", "value", "limit")),
            ],
        )
        for row, run in enumerate(ran["checks"])
        for column, name in enumerate(ran["check_names"])
        if (check := run["checks"].get(name))
    }
    for number, run in enumerate(ran["runs"]):
        lines = [(what, run[key]) for what, key in _RUN_CARD.items()]
        details[f"run-{number}"] = cards.card(run["name"], [*lines, *sorted(run["versions"].items())])
    return details
