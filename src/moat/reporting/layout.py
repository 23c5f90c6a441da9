"""How the cells of a table are arranged and worded; shared by Markdown, LaTeX and the page.

A measured number is printed with its interval. The published one stands apart from it, as ``published 62.1``, and so
does what an alternative protocol gives, as ``advmoe-released 61.8``. An ``unverified`` number carries that word and a
note with the reason; a cell without a number says ``not run``, or ``n/a`` where there can be none, and why. What is
noted of all numbers of a table is said once.
"""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from moat.config.grid import Cell, Table
from moat.reporting import measures, provenance
from moat.reporting.labels import shared_parts, without_shared
from moat.reporting.results import Results
from moat.reporting.tables import DOES_NOT_APPLY, distrusted, is_counted, not_run_reason, reasons_of, records, stand_ins

NOT_RUN, NOT_APPLICABLE = "not run", "n/a"
#: The mark of what is noted of all numbers of a table.
ALL = "all"
_OUTCOMES = ("reproduced", "explained", "above", "below")


@dataclass(frozen=True)
class Entry:
    """One printed cell.

    Attributes:
        values: its row of ``cells.csv``.
        number, interval: ``45.2`` and ``[42.1, 48.3]``, or None.
        published: ``62.1``, with as many digits as were published, or None.
        alternatives: (protocol, ``61.8 [60.9, 62.7]`` or ``not run``, verdict) of each alternative protocol.
        reason: why it is not run.
        record: the run.json of its first run, below ``results/<scale>``, or None.
        command: the snakemake command that makes just this cell.
    """

    cell: Cell
    values: Mapping[str, Any]
    number: str | None
    interval: str | None
    published: str | None
    alternatives: tuple[tuple[str, str, str], ...]
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
    def is_counted(self) -> bool:
        """Whether the outcome of its published number is counted: see :func:`moat.reporting.tables.is_counted`."""
        return is_counted(self.values["published"], self.values["metric"])

    @property
    def is_not_applicable(self) -> bool:
        """Whether there can be no measurement: an attack on the router of a net without one."""
        return self.reason is not None and self.reason.startswith(DOES_NOT_APPLY)

    @property
    def text(self) -> str:
        """What is printed for the measurement."""
        if self.measured is None:
            return NOT_APPLICABLE if self.is_not_applicable else NOT_RUN
        return f"unverified: {self.measured}" if self.verdict == "unverified" else self.measured

    @property
    def comparison(self) -> str | None:
        """``published 62.1`` and, where the two may be compared, the outcome."""
        if self.published is None:
            return None
        word = "matches" if self.verdict == "reproduced" and not self.is_counted else self.verdict
        outcome = f" ({word})" if self.verdict in _OUTCOMES else ""
        return f"published {self.published}{outcome}"

    @property
    def explanation(self) -> str | None:
        """``advmoe-released 61.8 [60.9, 62.7]`` for each alternative protocol that was measured."""
        said = (f"{protocol} {number}" for protocol, number, _ in self.alternatives if number != NOT_RUN)
        return "; ".join(said) or None


@dataclass(frozen=True)
class Layout:
    """A table ready to print: ``rows`` holds (label, one entry per column); ``notes`` (mark, text)."""

    table: Table
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    notes: tuple[tuple[str, str], ...]
    command: str

    @property
    def shared(self) -> str:
        """What the labels of all rows share, such as data set and net."""
        return shared_parts(self.table.rows)

    @property
    def labels(self) -> list[str]:
        """The rows' labels without it."""
        return without_shared(self.table.rows)

    @property
    def empty(self) -> list[str]:
        """The labels of the rows without any number, measured or published; none where no row has one."""
        has = {label: any(entry.measured or entry.published for entry in entries) for label, entries in self.rows}
        empty = [short for (label, _), short in zip(self.rows, self.labels, strict=True) if not has[label]]
        return empty if any(has.values()) else []

    def shown(self) -> tuple[list[tuple[str, tuple[Entry, ...]]], list[tuple[str, str]]]:
        """The rows but those of :attr:`empty`, with their short labels, and the notes whose marks are in them."""
        empty, labelled = set(self.empty), zip(self.labels, self.rows, strict=True)
        rows = [(short, entries) for short, (_, entries) in labelled if short not in empty]
        used = {ALL, *(mark for _, entries in rows for entry in entries for mark in entry.marks)}
        return rows, [(mark, text) for mark, text in self.notes if mark in used]


def arrange(table: Table, content: pd.DataFrame, results: Results) -> Layout:
    """Pivot a table's long frame (see :func:`moat.reporting.tables.table_frame`), whose rows are its cells in order."""
    rows = iter(records(content))
    found = [_entry(cell, [next(rows) for _ in cell.each()], results) for cell in table.cells]
    assert next(rows, None) is None, f"{table.study}-{table.name}: more rows than cells"
    # Said once, where it would be a mark at every number; what a check found stays where the number is.
    noted = [set(notes) - set(map(explain, distrusted(entry.values))) for entry, notes in found if entry.measured]
    common = set.intersection(*noted) if len(noted) > 1 else set()
    texts = dict.fromkeys(note for _, notes in found for note in notes if note not in common)
    # What a scale leaves out is often a long list of its own: its marks follow the others.
    marks = {note: _mark(number) for number, note in enumerate(sorted(texts, key=is_about_scale))}
    entries = [replace(entry, marks=_sorted(marks[note] for note in notes if note in marks)) for entry, notes in found]
    width = len(table.columns)
    lines = tuple((label, tuple(entries[i * width : (i + 1) * width])) for i, label in enumerate(table.rows))
    said = [note for _, notes in found for note in notes if note in common]
    notes = tuple((mark, text) for text, mark in marks.items()) + tuple((ALL, text) for text in dict.fromkeys(said))
    return Layout(table, lines, notes, provenance.table_command(table, results.scale))


def is_about_scale(note: str) -> bool:
    """Whether a note, or a reason, says that the scale leaves something out."""
    return "is not part of scale" in note


def _sorted(marks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(marks, key=lambda mark: (len(mark), mark)))


def _entry(cell: Cell, rows: list[Mapping[str, Any]], results: Results) -> tuple[Entry, list[str]]:
    """Of the rows of a cell and its alternative protocols, without marks; and the notes on it."""
    values, *alternatives = rows
    assert (values["row"], values["column"]) == (cell.row, cell.column)
    verdict, reason = values["verdict"] or "", None
    if verdict == "not-run":
        reason = not_run_reason(cell, results) or "not evaluated yet"
        why = reason.removeprefix(DOES_NOT_APPLY)
        notes = [f"{NOT_APPLICABLE}: {why}" if why != reason else f"{NOT_RUN}: {reason}"]
    else:
        reasons, _ = reasons_of(values)
        if verdict == "unverified" and not reasons:
            reasons = ["interval-too-wide"]
        # Those of the alternative protocols, too: their numbers stand in the same cell.
        remarks = [remark for row in rows for remark in reasons_of(row)[1]]
        notes = [explain(name) for name in dict.fromkeys([*reasons, *stand_ins(cell), *remarks])]
        # What may explain the number and is missing is said, for else it would seem that nothing does.
        notes += [f"not run under {each.protocol}: {each.not_run}" for each in cell.alternatives if each.not_run]
    number, interval = _numbers(cell, values)
    published, spread = values["published"], values["published_std"]
    if published is not None:
        published = (published if isinstance(published, str) else f"{published:g}") + (
            f" ± {spread:g}" if spread else ""
        )
    entry = Entry(
        cell=cell,
        values=values,
        number=number,
        interval=interval,
        published=published,
        alternatives=tuple(
            (each.protocol, " ".join(filter(None, _numbers(each, row))) or NOT_RUN, row["verdict"] or "")
            for each, row in zip(cell.alternatives, alternatives, strict=True)
        ),
        verdict=verdict,
        reason=reason,
        marks=(),
        record=provenance.record(cell, results),
        command=provenance.cell_command(cell, results.scale),
    )
    return entry, notes


_EXPLAINED = {
    "budget": "unverified: trained or evaluated with a smaller budget than the paper's, so not comparable with it",
    "checks-not-run": "unverified: the checks were not run",
    "model-changed": "unverified: the run was trained again after this was measured",
    "interval-too-wide": "unverified: the interval crosses the edge of the tolerance; too little was measured to tell",
    "seeds-missing": "unverified: not all seeds are evaluated yet",
    "unofficial-data": "unverified: the data set is not the official one",
    "other-hardware": "unverified: a cost, not measured on the paper's hardware",
    "stale": "stale: made by code or a recipe that has changed since",
    "differs-in-code": "unverified: our code or configuration is of another kind",
}


def explain(reason: str) -> str:
    """An entry of ``checks_failed`` as a phrase for people."""
    if reason.startswith("stand-in "):
        return f"stand-in: {replaced(reason)}"
    return _EXPLAINED.get(reason, f"unverified: the check {reason} failed")


def explain_distrust(reason: str) -> str:
    """:func:`explain` where the word ``unverified`` is already printed."""
    return explain(reason).removeprefix("unverified: ")


def replaced(stand_in: str) -> str:
    """``stand-in dataset cifar10->digits`` as ``dataset digits in place of cifar10``."""
    kind, names = stand_in.removeprefix("stand-in ").split(" ", 1)
    original, replacement = names.split("->")
    return f"{kind} {replacement} in place of {original}"


def _numbers(cell: Cell, values: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The number and its interval, as its measure shows them."""
    if values["measured"] is None:
        return None, None
    measure = measures.get(cell.measure)
    if measure.text is not None:
        return measure.text(values), None
    low, high = values["ci_low"], values["ci_high"]
    interval = None if low is None or low == high else f"[{measure.show(low)}, {measure.show(high)}]"
    return measure.show(values["measured"]), interval


def _mark(number: int) -> str:
    """a, b, … z, aa, ab, …"""
    head, tail = divmod(number, len(string.ascii_lowercase))
    return (_mark(head - 1) if head else "") + string.ascii_lowercase[tail]
