"""The claims as CSV, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moat.reporting import latex, markdown
from moat.reporting.layout import explain_distrust

COLUMNS = [
    *("claim", "study", "paper", "text", "stated", "unit", "measured", "ci_low", "ci_high"),
    *("protocol", "explained", "explained_low", "explained_high", "verdict", "reasons", "kind", "indication"),
    *("indicated", "indicated_low", "indicated_high", "tested", "indication_reason", "budget"),
    *("explanation", "evidence"),
]
HEADINGS = ("claim", "stated", "measured", "what may explain a difference", "verdict", "indication", "evidence")
TITLE = "The papers' claims, and what was measured"
CAPTION = (
    "Measured: under the correct protocol, computed from the cells named as evidence, with a 95 % interval; where a "
    "claim is about each of several cells, of the one that decides. An explanation is only a possible one until the "
    "verdict is explained; the number under its protocol, where there is one, follows it. An indication is what a "
    "scale that is not comparable with the papers shows; it is no verdict."
)


def to_csv(claims: Sequence[Mapping[str, Any]]) -> str:
    """One row per claim with :data:`COLUMNS`."""
    return pd.DataFrame([_row(claim) for claim in claims], columns=COLUMNS).to_csv(index=False, lineterminator="\n")


def _row(claim: Mapping[str, Any]) -> dict[str, Any]:
    measured, explained = claim["measured"] or {}, claim["explained"] or {}
    shown = claim["indication"] or {}
    indicated = shown.get("number") or {}
    same = ("study", "paper", "text", "stated", "unit", "protocol", "verdict", "kind")
    return {
        "claim": claim["id"],
        **{name: claim[name] for name in same},
        **{"measured": measured.get("value"), "ci_low": measured.get("low"), "ci_high": measured.get("high")},
        **{f"explained{end}": explained.get(key) for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))},
        "reasons": ";".join(claim["reasons"]),
        "indication": shown.get("word"),
        **{"indicated": indicated.get("value"), "indicated_low": indicated.get("low")},
        "indicated_high": indicated.get("high"),
        **{"tested": shown.get("tested"), "indication_reason": shown.get("why"), "budget": claim["budget"]},
        "explanation": explanation(claim),
        "evidence": evidence(claim, limit=len(claim["evidence"])),
    }


def to_markdown(claims: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"**{markdown.escape(TITLE)}**", "", markdown.escape(CAPTION), ""]
    lines += [f"| {' | '.join(HEADINGS)} |", f"| {' | '.join(['---'] * len(HEADINGS))} |"]
    lines += [f"| {' | '.join(markdown.escape(text) for text in words(claim))} |" for claim in claims]
    return "\n".join(lines) + "\n"


def to_latex(claims: Sequence[Mapping[str, Any]]) -> str:
    """A ``longtable``, because it is longer than a page; needs the packages booktabs, longtable and array."""
    # All columns together are as wide as the page, the space between them included.
    column = f"p{{\\dimexpr{1 / len(HEADINGS):.4f}\\linewidth-2\\tabcolsep\\relax}}"
    columns = f">{{\\raggedright\\arraybackslash}}{column}" * len(HEADINGS)
    lines = [
        "% needs \\usepackage{booktabs,longtable,array}",
        "{\\footnotesize",
        f"\\begin{{longtable}}{{{columns}}}",
        f"\\caption{{{latex.escape(TITLE)}. {latex.escape(CAPTION)}}}\\label{{tab:claims}}\\\\",
        "\\toprule",
        " & ".join(HEADINGS) + r" \\",
        "\\midrule\\endhead",
        *(" & ".join(latex.escape(text) for text in words(claim)) + r" \\" for claim in claims),
        "\\bottomrule",
        "\\end{longtable}}",
    ]
    return "\n".join(lines) + "\n"


def words(claim: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands under :data:`HEADINGS`."""

    measured, explained = (claim[key] and number(claim[key], claim["unit"]) for key in ("measured", "explained"))
    why = "; ".join(map(explain_distrust, claim["reasons"])) if measured else ""
    return (
        f"{claim['paper']}: {claim['text']}",
        claim["stated"],
        f"{measured}{decides(claim)}" if measured else f"not run: {claim['reasons'][0]}",
        explanation(claim) + (f" ({claim['protocol']}: {explained})" if explained else ""),
        claim["verdict"] + (f": {why}" if why else ""),
        indication(claim) or "-",
        evidence(claim),
    )


def number(found: Mapping[str, float], unit: str) -> str:
    """``4.02 [2.10, 5.94] points``; without an interval where it has no width, as of a count of operations."""
    interval = f" [{found['low']:.2f}, {found['high']:.2f}]" if found["low"] < found["high"] else ""
    return f"{found['value']:.2f}{interval} {unit}"


def indication(claim: Mapping[str, Any]) -> str | None:
    """``supports the paper: 1.20 [0.30, 2.10] points (above 0; width 0.25, 2 seeds)``; None at a comparable scale."""
    if (shown := claim["indication"]) is None:
        return None
    if shown["number"] is None:
        return f"{shown['word']}: {shown['why']}"
    return f"{shown['word']}: {number(shown['number'], claim['unit'])} ({'; '.join(basis(claim))})"


def basis(claim: Mapping[str, Any]) -> list[str]:
    """What an indication was tested for, why it is what it is, on how many cells and with which budget."""
    shown = claim["indication"]
    part = f"{shown['used']} of {shown['of']} comparisons" if shown["of"] > 1 else ""
    return [each for each in (f"tested: {shown['tested']}", shown["why"], part, claim["budget"]) if each]


def explanation(claim: Mapping[str, Any]) -> str:
    """What may explain a difference, and whether that was tested."""
    return f"{claim['explanation_status']}: {claim['explanation']}"


def decides(claim: Mapping[str, Any]) -> str:
    """Of how many cells the number is that decides; nothing where it is their mean."""
    return f" (decides, of {claim['compared']})" if claim["compared"] else ""


def evidence(claim: Mapping[str, Any], limit: int = 3) -> str:
    """The cells; of many the first few and how many more there are."""
    places = [f"{each['id']}: {each['row']} × {each['column']}" for each in claim["evidence"]]
    more = [f"and {len(places) - limit} more cells"] if len(places) > limit + 1 else []
    return "; ".join([*(places[:limit] if more else places), *more])
