"""What the page says first: a sentence per paper, from its headline claim and its row of the leaderboard."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from moat.config.project import Project
from moat.reporting.labels import SEPARATOR
from moat.reporting.layout import Layout

#: The table and the figure that the page begins with, and the columns of the table that the sentences quote.
LEADERBOARD, PUBLISHED = "unified-leaderboard", "unified-published"
_CLEAN, _ROBUST = "clean", "worst case"


def sentences(
    project: Project, studies: Sequence[str], claims: Sequence[Mapping[str, Any]], leaderboard: Layout | None
) -> list[dict[str, Any]]:
    """One dict per paper of the studies.

    Returns:
        ``paper``; ``reference``: see :func:`reference`; ``claim``: its headline claim or None; ``counts``: indication
        or, at a comparable scale, verdict -> number of its claims; ``row``: what the leaderboard has of the paper's own
        method, see :func:`_row`.
    """
    found = []
    for study in studies:
        spec = project.study(study)
        paper = spec.get("paper")
        if paper is None:
            continue
        own = [claim for claim in claims if claim["study"] == study and claim["paper"] == paper]
        said = [claim["indication"]["word"] if claim["indication"] else claim["verdict"] for claim in own]
        headline = next((claim for claim in own if claim["headline"]), None)
        counts = Counter(said).most_common()
        about = {"paper": paper, "reference": reference(spec), "claim": headline}
        found.append({**about, "counts": counts, "row": _row(paper, leaderboard)})
    return found


def reference(spec: Mapping[str, Any]) -> dict[str, str | None] | None:
    """How a study's paper is cited: ``authors``, ``title``, and ``where`` and ``url`` or None."""
    return {"where": None, "url": None, **spec["reference"]} if "reference" in spec else None


def _row(paper: str, leaderboard: Layout | None) -> dict[str, Any] | None:
    """The entries ``clean`` and ``robust`` of the method that is named like the paper, and ``best``, the other one
    that keeps most, unless a check failed.

    None where the leaderboard has no such number.
    """
    if leaderboard is None or not {_CLEAN, _ROBUST} <= set(leaderboard.table.columns):
        return None
    clean, robust = map(leaderboard.table.columns.index, (_CLEAN, _ROBUST))
    rows = {label.split(SEPARATOR)[-1]: entries for label, entries in leaderboard.rows if entries[robust].measured}
    if paper not in rows:
        return None
    rest = ((label, entries[robust]) for label, entries in rows.items() if label != paper)
    others = {label: entry for label, entry in rest if entry.verdict != "unverified"}
    best = max(others, key=lambda label: others[label].values["measured"], default=None)
    return {
        "clean": rows[paper][clean],
        "robust": rows[paper][robust],
        "best": best and {"label": best, "robust": others[best]},
    }
