"""How the cells of a table are arranged and worded; shared by Markdown, LaTeX and the page.

A number that was measured is printed with its interval; what was published stands apart from it, as
``published 62.1``, and so does what a flawed protocol gives, as ``advmoe-released 61.8``. A number that is
``unverified`` carries that word and a note with the reason; a cell without a number says ``not run`` and the reason.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moat.config.grid import Cell, Table
from moat.reporting import measures, provenance
from moat.reporting.results import Results
from moat.reporting.tables import not_run_reason, reasons_of, stand_ins


@dataclass(frozen=True)
class Entry:
    """One printed cell.

    Attributes:
        values: its row of ``cells.csv``.
        number, interval: ``45.2`` and ``[42.1, 48.3]``, or None.
        published: ``62.1``, as many digits as were published, or None.
        flawed: (protocol, ``61.8 [60.9, 62.7]`` or ``not run``, verdict) of what may explain the published number.
        reason: why it is not run.
        record: the run.json of its first run, below ``results/<scale>``, or None.
        command: the snakemake command that makes just this cell.
    """

    cell: Cell
    values: Mapping[str, Any]
    number: str | None
    interval: str | None
    published: str | None
    flawed: tuple[tuple[str, str, str], ...]
    verdict: str
    reason: str | None
    marks: tuple[str, ...]
    record: str | None
    command: str | None

    @property
    def measured(self) -> str | None:
        """``45.2 [42.1, 48.3]``; without the interval where there is none."""
        return " ".join(filter(None, (self.number, self.interval))) or None

    @property
    def text(self) -> str:
        """What stands for the measurement."""
        if self.measured is None:
            return "not run"
        return f"unverified: {self.measured}" if self.verdict == "unverified" else self.measured

    @property
    def comparison(self) -> str | None:
        """``published 62.1`` and, where the comparison holds, how it comes out."""
        if self.published is None:
            return None
        outcome = f" ({self.verdict})" if self.verdict in _OUTCOMES else ""
        return f"published {self.published}{outcome}"

    @property
    def explanation(self) -> str | None:
        """``advmoe-released 61.8 [60.9, 62.7]`` for each flawed protocol that was measured."""
        said = (f"{protocol} {number}" for protocol, number, _ in self.flawed if number != NOT_RUN)
        return "; ".join(said) or None


@dataclass(frozen=True)
class Layout:
    """A table ready to print: ``rows`` holds (label, one entry per column); ``notes`` (mark, text)."""

    table: Table
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    notes: tuple[tuple[str, str], ...]
    command: str


NOT_RUN = "not run"
_OUTCOMES = ("reproduced", "explained", "above", "below")


def arrange(table: Table, content, results: Results) -> Layout:
    """Pivot a table's long frame (see :func:`moat.reporting.tables.table_frame`), whose rows are its cells in order."""
    marks: dict[str, str] = {}
    records = iter(content.astype(object).where(content.notna(), None).to_dict("records"))
    entries = [_entry(cell, _take(cell, records), results, marks) for cell in table.cells]
    assert next(records, None) is None, f"{table.study}-{table.name}: more rows than cells"
    width = len(table.columns)
    rows = tuple((label, tuple(entries[i * width : (i + 1) * width])) for i, label in enumerate(table.rows))
    notes = tuple((mark, text) for text, mark in marks.items())
    return Layout(table, rows, notes, provenance.table_command(table, results.scale))


def _take(cell: Cell, records: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The row of a cell and those of its explanations."""
    taken = [next(records) for _ in cell.each()]
    assert (taken[0]["row"], taken[0]["column"]) == (cell.row, cell.column)
    return taken


def _entry(cell: Cell, rows: list[Mapping[str, Any]], results: Results, marks: dict[str, str]) -> Entry:
    values, *flawed = rows
    verdict, reason = values["verdict"] or "", None
    if verdict == "not-run":
        reason = not_run_reason(cell, results) or "not evaluated yet"
        notes = [f"not run: {reason}"]
    else:
        replaced = [f"stand-in {stand_in}" for stand_in in stand_ins(cell)]
        reasons, _ = reasons_of(values)
        if verdict == "unverified" and not reasons:
            reasons = ["interval-too-wide"]
        # What a flawed protocol gives stands in the same cell.
        remarks = [remark for row in rows for remark in reasons_of(row)[1]]
        notes = [explain(name) for name in dict.fromkeys([*reasons, *replaced, *remarks])]
    number, interval = _numbers(cell, values)
    return Entry(
        cell=cell,
        values=values,
        number=number,
        interval=interval,
        published=_with_spread(values["published"], values["published_std"]),
        flawed=tuple(_flawed(each, row) for each, row in zip(cell.alternatives, flawed, strict=True)),
        verdict=verdict,
        reason=reason,
        marks=tuple(sorted((marks.setdefault(note, _mark(len(marks))) for note in notes), key=lambda m: (len(m), m))),
        record=provenance.record(cell, results),
        command=provenance.cell_command(cell, results.scale),
    )


def _flawed(cell: Cell, values: Mapping[str, Any]) -> tuple[str, str, str]:
    said = " ".join(filter(None, _numbers(cell, values))) or NOT_RUN
    return cell.protocol, said, values["verdict"] or ""


def explain(reason: str) -> str:
    """A name in ``checks_failed`` as a sentence for people."""
    fixed = {
        "budget": "unverified: trained or evaluated with a smaller budget than the paper's, so not comparable with it",
        "checks-not-run": "unverified: the checks were not checked",
        "model-changed": "unverified: the run was trained again after this was measured",
        "interval-too-wide": "unverified: the interval crosses the tolerance's edge; too little was measured to tell",
        "seeds-missing": "unverified: not all seeds are evaluated yet",
        "unofficial-data": "unverified: the data set is not the official one",
        "other-hardware": "unverified: a cost, not measured on the paper's hardware",
        "stale": "stale: made by sources that have changed since",
        "differs-in-code": "unverified: the code that implements the method is of another kind",
    }
    if reason in fixed:
        return fixed[reason]
    if reason.startswith("stand-in "):
        kind, names = reason.removeprefix("stand-in ").split(" ", 1)
        original, replacement = names.split("->")
        return f"stand-in: {kind} {replacement} in place of {original}"
    return f"unverified: the check {reason} failed"


def _numbers(cell: Cell, values: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The number and its interval, as its measure shows them."""
    if values["measured"] is None:
        return None, None
    measure = measures.get(cell.measure)
    if hasattr(measure, "text"):
        return measure.text(values), None
    low, high = values["ci_low"], values["ci_high"]
    interval = None if low is None or low == high else f"[{measure.show(low)}, {measure.show(high)}]"
    return measure.show(values["measured"]), interval


def _with_spread(value: float | str | None, spread: float | None) -> str | None:
    """As many digits as were published."""
    if value is None:
        return None
    return (value if isinstance(value, str) else f"{value:g}") + (f" ± {spread:g}" if spread else "")


def _mark(number: int) -> str:
    """a, b, … z, aa, ab, …"""
    letters: Sequence[str] = string.ascii_lowercase
    head, tail = divmod(number, len(letters))
    return (_mark(head - 1) if head else "") + letters[tail]
