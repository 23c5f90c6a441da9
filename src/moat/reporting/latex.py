"""Tables as LaTeX, for ``\\usepackage{booktabs,graphicx}``."""

from moat.reporting.labels import spelled
from moat.reporting.layout import Entry, Layout

_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "…": r"\dots{}",
    "–": "--",
}
# At its own width, or the page's if that is less.
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"


def render(layout: Layout) -> str:
    """A ``table`` float, shrunk to the width of the page, with published numbers in italics below the measured ones."""
    table = layout.table
    rows, notes = layout.shown()
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        "\\centering\\small",
        f"\\caption{{{escape(table.title)}. {escape(table.caption)}}}",
        f"\\label{{tab:{_label(table.study)}-{_label(table.name)}}}",
        f"{_FIT}\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "\\toprule",
        _line([escape(layout.shared), *(escape(spelled(column)) for column in table.columns)]),
        "\\midrule",
        *(line for label, entries in rows for line in _row(label, entries)),
        "\\bottomrule",
        "\\end{tabular}}",
    ]
    said = [f"\\textsuperscript{{{mark}}} {escape(text)}." for mark, text in notes]
    if layout.empty:
        said.insert(0, f"Not run: {escape('; '.join(layout.empty))}.")
    if said:
        lines.append("\\par\\smallskip\\begin{minipage}{\\linewidth}\\footnotesize\\raggedright")
        lines += [f"{note}\\\\" if i + 1 < len(said) else note for i, note in enumerate(said)]
        lines.append("\\end{minipage}")
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def escape(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def _row(label: str, entries: tuple[Entry, ...]) -> list[str]:
    """The measured numbers; below them, if there are any, the published ones and those of alternative protocols."""
    lines = [_line([escape(label), *map(_entry, entries)])]
    for said in ([e.comparison for e in entries], [e.explanation for e in entries]):
        if any(said):
            lines.append(_line([f"\\emph{{{escape(text)}}}" if text else "" for text in _headed(said)]))
    return lines


def _headed(said: list[str | None]) -> list[str | None]:
    """Label and cells of a line; the label is their first word ("published") if all of them have the same."""
    first = {text.partition(" ")[0] for text in said if text}
    if len(first) > 1 or any("; " in text for text in said if text):
        return ["", *said]
    return [*first, *(text and text.partition(" ")[2] for text in said)]


def _entry(entry: Entry) -> str:
    marks = f"\\textsuperscript{{{','.join(entry.marks)}}}" if entry.marks else ""
    return escape(entry.text) + marks


def _line(cells: list[str]) -> str:
    """A row of the tabular. A bracket or star at its start would be an argument of the line end before it."""
    line = " & ".join(cells) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line


def _label(name: str) -> str:
    """A name without the characters that are not allowed in a label."""
    return "".join(character if character.isalnum() or character in "-:." else "-" for character in name)
