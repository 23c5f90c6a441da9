"""The cards of the page: what stands behind a number, as (what, value) pairs.

A card opens when its number is hovered, focused or pressed. All cards travel as one JSON object, keyed by the id of the
element that opens them; a thousand of them as HTML would be most of the page. A value that is the path of a result is
made a link by the page.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from moat.reporting import measures, provenance
from moat.reporting.layout import Entry, Layout, explain
from moat.reporting.results import Results
from moat.reporting.tables import reasons_of

Line = tuple[str, Any]


def cell_id(table: str, row: int, column: int) -> str:
    """The id of a cell on the page, and of its card."""
    return f"{table}-{row}-{column}"


def of_table(name: str, layout: Layout, results: Results) -> dict[str, dict[str, Any]]:
    """id -> card of every cell of a table; ``name`` is the table's id on the page."""
    return {
        cell_id(name, row, column): card(f"{label}, {layout.table.columns[column]}", of_cell(entry, results))
        for row, (label, entries) in enumerate(layout.rows)
        for column, entry in enumerate(entries)
    }


def card(title: str, lines: Iterable[Line]) -> dict[str, Any]:
    """A title and the lines that have a value."""
    return {"title": title, "lines": [[what, str(value)] for what, value in lines if value not in (None, "")]}


def embed(found: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON that may stand inside a script element: without ``<``, so that nothing closes the element."""
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def of_cell(entry: Entry, results: Results) -> list[Line]:
    """Where a number comes from, whether it can be trusted, and how it is made."""
    cell, values = entry.cell, entry.values
    unit = f" {measures.get(cell.measure).UNIT}".rstrip()
    lines = [("verdict", entry.verdict or "measured")]
    if entry.measured is None:
        lines += [("why", entry.reason), *_published(entry, unit), ("made by", entry.command)]
        return lines
    lines += [("why", reason) for reason in _reasons(entry)]
    stale = ((what, parts) for each in cell.each() for what, parts in results.stale(each).items())
    said = (f"{what}: {', '.join(parts)} changed since" for what, parts in stale)
    lines += [("stale", each) for each in dict.fromkeys(said)]
    lines += [("measured", f"{entry.measured}{unit}")]
    if values["measured_std"] is not None:
        lines += [("between seeds", f"standard deviation {values['measured_std']:.2f}")]
    lines += _published(entry, unit)
    lines += [
        ("metric", f"{values['metric']}, protocol {cell.protocol}"),
        ("examples", values["n"] and values["seeds"] and f"{values['n']} per seed"),
        ("seeds", values["seeds"] and values["seeds"].replace(";", ", ")),
        *provenance.files(cell, results),
        ("made by", entry.command),
    ]
    return lines


def _published(entry: Entry, unit: str) -> list[Line]:
    cell = entry.cell
    if entry.published is None:
        return [("published", "nothing that this could be compared with")]
    tolerance = "" if isinstance(cell.published, str) else f", tolerance {cell.tolerance:g}"
    line = f" (config/published/{cell.study}.csv, line {cell.published_line})" if cell.published_line else ""
    return [
        ("published", f"{entry.published}{unit}{tolerance}{line}"),
        *(
            (f"under {protocol}", f"{number}{f': {verdict}' if verdict not in ('', 'not-run') else ''}")
            for protocol, number, verdict in entry.flawed
        ),
    ]


def _reasons(entry: Entry) -> list[str]:
    """Why a number is not to be taken at its word; with a verdict that compares, how it came about."""
    reasons, _ = reasons_of(entry.values)
    if reasons:
        return [explain(reason).removeprefix("unverified: ") for reason in reasons]
    known = {
        "unverified": explain("interval-too-wide").removeprefix("unverified: "),
        "reproduced": "the whole interval lies within the tolerance of the published number",
        "above": "the whole interval lies above the published number and its tolerance",
        "below": "the whole interval lies below the published number and its tolerance",
        "explained": "a replica of the paper's protocol gives the published number, the correct protocol does not",
    }
    return [known[entry.verdict]] if entry.verdict in known else []
