"""How the cells of a table are arranged and worded; shared by Markdown, LaTeX and the page.

A number that was measured is printed with its interval; what was published stands apart from it, as
``published 62.1``. A number that is ``unverified`` carries that word and a note with the reason; a cell
without a number says ``not run`` and the reason.
"""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moat.config.grid import Cell, Table
from moat.reporting.results import Results
from moat.reporting.tables import not_run_reason, stand_ins


@dataclass(frozen=True)
class Entry:
    """One printed cell. ``measured``: ``45.2 [42.1, 48.3]`` or None; ``published``: ``62.1`` or None."""

    cell: Cell
    values: Mapping[str, Any]
    measured: str | None
    published: str | None
    verdict: str
    reason: str | None
    marks: tuple[str, ...]

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


@dataclass(frozen=True)
class Layout:
    """A table ready to print: ``rows`` holds (label, one entry per column); ``notes`` (mark, text)."""

    table: Table
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    notes: tuple[tuple[str, str], ...]


_OUTCOMES = ("reproduced", "explained", "higher", "lower")


def arrange(table: Table, content, results: Results) -> Layout:
    """Pivot a table's long frame (see :func:`moat.reporting.tables.table_frame`), whose rows are its cells in order."""
    marks: dict[str, str] = {}
    records = content.astype(object).where(content.notna(), None).to_dict("records")
    entries = [_entry(cell, values, results, marks) for cell, values in zip(table.cells, records, strict=True)]
    width = len(table.columns)
    rows = tuple((label, tuple(entries[i * width : (i + 1) * width])) for i, label in enumerate(table.rows))
    return Layout(table, rows, tuple((mark, text) for text, mark in marks.items()))


def _entry(cell: Cell, values: Mapping[str, Any], results: Results, marks: dict[str, str]) -> Entry:
    verdict, reason = values["verdict"] or "", None
    if verdict == "not-run":
        reason = not_run_reason(cell, results) or "not evaluated yet"
        notes = [f"not run: {reason}"]
    else:
        replaced = [f"stand-in {stand_in}" for stand_in in stand_ins(cell)]
        reasons = (values["gates_failed"] or "interval-too-wide").split(";") if verdict == "unverified" else []
        notes = [explain(name) for name in dict.fromkeys([*reasons, *replaced])]
    return Entry(
        cell=cell,
        values=values,
        measured=_with_interval(values),
        published=_with_spread(values["published"], values["published_std"]),
        verdict=verdict,
        reason=reason,
        marks=tuple(sorted((marks.setdefault(note, _mark(len(marks))) for note in notes), key=lambda m: (len(m), m))),
    )


def explain(reason: str) -> str:
    """A name in ``gates_failed`` as a sentence for people."""
    fixed = {
        "budget": "unverified: trained or evaluated with a smaller budget than the paper's, so not comparable with it",
        "gates-not-run": "unverified: the gates were not checked",
        "model-changed": "unverified: the run was trained again after this was measured",
        "interval-too-wide": "unverified: the interval crosses the tolerance's edge; too little was measured to tell",
        "seeds-missing": "unverified: not all seeds are evaluated yet",
    }
    if reason in fixed:
        return fixed[reason]
    if reason.startswith("stand-in "):
        kind, names = reason.removeprefix("stand-in ").split(" ", 1)
        original, replacement = names.split("->")
        return f"stand-in: {kind} {replacement} in place of {original}"
    return f"unverified: the gate {reason} failed"


def points(value: float) -> str:
    """Percent points with one decimal."""
    return f"{value:.1f}"


def _with_interval(values: Mapping[str, Any]) -> str | None:
    if values["measured"] is None:
        return None
    return f"{points(values['measured'])} [{points(values['ci_low'])}, {points(values['ci_high'])}]"


def _with_spread(value: float | None, spread: float | None) -> str | None:
    """As many digits as were published."""
    if value is None or math.isnan(value):
        return None
    return f"{value:g}" + (f" ± {spread:g}" if spread else "")


def _mark(number: int) -> str:
    """a, b, … z, aa, ab, …"""
    letters: Sequence[str] = string.ascii_lowercase
    head, tail = divmod(number, len(letters))
    return (_mark(head - 1) if head else "") + letters[tail]
