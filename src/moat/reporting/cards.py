"""The cards of the page: what is behind a number, as (name, value) pairs.

A card opens when its number is hovered, focused or pressed. All cards travel as one JSON object, keyed by the id of the
element that opens them; a thousand of them as HTML would be most of the page. The page turns a value that is the path
of a result into a link.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from moat.provenance.staleness import describe
from moat.reporting import measures, provenance
from moat.reporting.labels import spelled
from moat.reporting.layout import Entry, Layout, explain_distrust
from moat.reporting.results import Results
from moat.reporting.tables import reasons_of

Line = tuple[str, Any]
_WHY = {
    "unverified": explain_distrust("interval-too-wide"),
    "reproduced": "the whole interval lies within the tolerance around the published number",
    "above": "the whole interval lies above the tolerance around the published number",
    "below": "the whole interval lies below the tolerance around the published number",
    "explained": "a replica of the paper's protocol gives the published number, the correct protocol does not",
}


def cell_id(table: str, row: int, column: int) -> str:
    """The id of a cell on the page, and of its card."""
    return f"{table}-{row}-{column}"


def of_table(name: str, layout: Layout, results: Results) -> dict[str, dict[str, Any]]:
    """id -> card of every cell of a table; ``name`` is the table's id on the page."""
    return {
        cell_id(name, row, column): card(f"{label}, {spelled(layout.table.columns[column])}", of_cell(entry, results))
        for row, (label, entries) in enumerate(layout.rows)
        for column, entry in enumerate(entries)
    }


def card(title: str, lines: Iterable[Line]) -> dict[str, Any]:
    """A title and the lines that have a value."""
    return {"title": title, "lines": [[what, str(value)] for what, value in lines if value not in (None, "")]}


def embed(found: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON that may stand inside a script element: without ``<``, so that nothing closes the element."""
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _seeds(numbers: list[str]) -> str:
    """How many seeds, and which: ``3 (numbers 0, 1, 2)``."""
    return f"{len(numbers)} (number{'s' if len(numbers) > 1 else ''} {', '.join(numbers)})"


def of_cell(entry: Entry, results: Results) -> list[Line]:
    """Where a number comes from, whether it can be trusted, and how it is made."""
    cell, values = entry.cell, entry.values
    unit = f" {measures.get(cell.measure).unit}".rstrip()
    published: list[Line] = [("published", "nothing to compare with")]
    if entry.published is not None:
        tolerance = "" if isinstance(cell.published, str) else f", tolerance {cell.tolerance:g}"
        line = f" (config/published/{cell.study}.csv, line {cell.published_line})" if cell.published_line else ""
        published = [("published", f"{entry.published}{unit}{tolerance}{line}")]
        for protocol, number, verdict in entry.alternatives:
            outcome = f": {verdict}" if verdict not in ("", "not-run") else ""
            published.append((f"under {protocol}", f"{number}{outcome}"))
    if entry.measured is None:
        return [("verdict", entry.verdict), ("why", entry.reason), *published, ("made by", entry.command)]
    reasons, _ = reasons_of(values)
    why = [explain_distrust(reason) for reason in reasons] or [_WHY.get(entry.verdict)]
    stale = [f"{what}: {describe(reasons)}" for each in cell.each() for what, reasons in results.stale(each).items()]
    spread = values["measured_std"]
    return [
        ("verdict", entry.verdict or "measured"),
        *(("why", reason) for reason in why),
        *(("stale", said) for said in dict.fromkeys(stale)),
        ("measured", f"{entry.measured}{unit}"),
        ("between seeds", None if spread is None else f"standard deviation {spread:.2f}"),
        *published,
        ("metric", f"{values['metric']}, protocol {cell.protocol}"),
        ("weights", "of the last epoch" if cell.weights == "last" else None),
        ("examples", values["n"] and values["seeds"] and f"{values['n']} per seed"),
        ("seeds", values["seeds"] and _seeds(values["seeds"].split(";"))),
        *provenance.files(cell, results),
        ("made by", entry.command),
    ]
