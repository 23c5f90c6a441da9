"""Tables as Markdown (the pipe tables of GitHub)."""

import re
import textwrap

from moat.reporting.labels import spelled
from moat.reporting.layout import Entry, Layout


def render(layout: Layout) -> str:
    """The table with its title, caption and notes; of rows without any number the names alone, below it."""
    table = layout.table
    rows, notes = layout.shown()
    lines = [f"**{escape(table.title)}**", "", *wrapped(table.caption), ""]
    lines.append(_line([escape(layout.shared), *(escape(spelled(column)) for column in table.columns)]))
    lines.append(_line(["---", *["---:"] * len(table.columns)]))
    lines += [_row(label, entries) for label, entries in rows]
    lines += ["", f"Made by `{layout.command}`."]
    if layout.empty:
        lines += ["", *wrapped(f"Not run: {'; '.join(layout.empty)}.")]
    if notes:
        lines += ["", *(f"- <sup>{mark}</sup> {escape(text)}" for mark, text in notes)]
    return "\n".join(lines) + "\n"


def wrapped(text: str) -> list[str]:
    """A paragraph, escaped, in lines that can be read as they are; none of them begins a list."""
    lines = textwrap.wrap(escape(text), 120, break_long_words=False, break_on_hyphens=False)
    return [re.sub(r"^([-+#]|\d+(?=[.)]))", r"\\\1", line) for line in lines]


def escape(text: str) -> str:
    """Plain text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_|<>]|\[(?=[^\]]*\]\())", r"\\\1", " ".join(text.split()))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(label: str, entries: tuple[Entry, ...]) -> str:
    """The label leads to the run's record, as seen from the folder of the tables; of several runs, each number does."""
    records = {entry.record for entry in entries if entry.number is not None and entry.record is not None}
    if len(records) == 1:
        return _line([f"[{escape(label)}](../{records.pop()})", *(_entry(entry) for entry in entries)])
    return _line([escape(label), *(_entry(entry, linked=True) for entry in entries)])


def _entry(entry: Entry, *, linked: bool = False) -> str:
    text = escape(entry.text)
    if linked and entry.number is not None and entry.record is not None:
        number = escape(entry.number)
        text = text.replace(number, f"[{number}](../{entry.record})", 1)
    marks = f" <sup>{','.join(entry.marks)}</sup>" if entry.marks else ""
    said = [f"<br>*{escape(part)}*" for part in (entry.comparison, entry.explanation) if part]
    return text + marks + "".join(said)
