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
    lines += ["", f"Made by `{layout.command}`."]
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
    said = [f"<br>*{escape(text)}*" for text in (entry.comparison, entry.explanation) if text]
    return _linked(entry) + marks + "".join(said)


def _linked(entry: Entry) -> str:
    """The measurement; its number leads to the run's record, as seen from the folder of the tables."""
    text = escape(entry.text)
    if entry.number is None or entry.record is None:
        return text
    number = escape(entry.number)
    return text.replace(number, f"[{number}](../{entry.record})", 1)
