"""Tables as Markdown (the pipe tables of GitHub)."""

import re

from moat.reporting.layout import Entry, Layout


def render(layout: Layout) -> str:
    """The table with its title, caption and notes."""
    table = layout.table
    lines = [f"**{escape(table.title)}**", "", escape(table.caption), ""]
    lines.append(_line(["", *map(escape, table.columns)]))
    lines.append(_line(["---", *["---:"] * len(table.columns)]))
    lines += [_line([escape(label), *map(_entry, entries)]) for label, entries in layout.rows]
    if layout.notes:
        lines += ["", *(f"- <sup>{mark}</sup> {escape(text)}" for mark, text in layout.notes)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Plain text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_|<>]|\[(?=[^\]]*\]\())", r"\\\1", " ".join(text.split()))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _entry(entry: Entry) -> str:
    marks = f" <sup>{','.join(entry.marks)}</sup>" if entry.marks else ""
    comparison = f"<br>*{escape(entry.comparison)}*" if entry.comparison else ""
    return escape(entry.text) + marks + comparison
