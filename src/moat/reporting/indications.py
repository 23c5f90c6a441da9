"""What a scale that is not comparable with the papers shows of a claim: an indication, never a verdict.

Which rule holds is decided by the claim's ``kind``, before anything is measured:

- ``order``: a difference or an order between methods. Supported where the whole interval lies on the claimed side,
  contradicted where it lies on the other one; every number is the mean of at least two seeds.
- ``protocol``: what an undefended net keeps, or what only a way of measuring can give. The explanation is supported
  where the number under the alternative protocol lies within what is stated and the correct one outside, the paper
  where the correct one lies within; with both outside, the result speaks against the paper.
- ``cost``: a ratio of costs, whose interval is compared with what is stated.
- ``value``: a number of a defended net at the papers' size, which no smaller scale can test.

"Within" and "outside" are meant of the whole 95 % interval; where it crosses an edge, the claim stays undecided, as it
does where a check failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moat.reporting.quantities import OVER, Band, Number

PAPER, EXPLANATION, AGAINST = "supports the paper", "supports the explanation", "speaks against"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable here"
INDICATIONS = (PAPER, EXPLANATION, AGAINST, UNDECIDED, NOT_TESTABLE)
KINDS = ("order", "protocol", "cost", "value")
# A difference between two single runs may be that of their seeds.
MIN_SEEDS = 2


@dataclass(frozen=True)
class Compared:
    """One cell, or one pair of cells, that a claim is about.

    Attributes:
        correct, replica: the claim's quantity under the correct and under the alternative protocol, or None.
        seeds: the fewest of its cells; 0 where there is no measurement.
        problem: why its numbers cannot be used, or None.
        left_out: whether that is because the scale leaves it out, so that it will not be measured.
    """

    correct: Number | None
    replica: Number | None
    seeds: int
    problem: str | None = None
    left_out: bool = False


@dataclass(frozen=True)
class Indication:
    """One of :data:`INDICATIONS`, why, the number it rests on, and from how many of the compared it was computed."""

    word: str
    why: str
    number: Number | None = None
    used: int = 0


def of_claim(kind: str, over: str, band: Band, compared: Sequence[Compared], *, replicated: bool) -> Indication:
    """What the compared cells indicate.

    Args:
        over: a name of :data:`moat.reporting.quantities.OVER`. Of ``each`` of several, one outside is enough to speak
            against the claim; nothing short of all of them supports the paper.
        band: what is claimed; of an ``order`` the claimed side.
        replicated: whether an alternative protocol may explain the claim.
    """
    if kind == "value":
        return Indication(NOT_TESTABLE, "it is about the number of a defended net at the paper's size")
    problems = [(_problem(kind, each, replicated), each.left_out) for each in compared]
    usable = [each for each, (problem, _) in zip(compared, problems, strict=True) if problem is None]
    # What the scale leaves out comes first: nothing that is run later will change it.
    lacking = sorted((each for each in problems if each[0]), key=lambda each: not each[1])
    incomplete = Indication(NOT_TESTABLE if lacking[0][1] else UNDECIDED, lacking[0][0]) if lacking else None
    if incomplete and (over != "each" or not usable):
        return incomplete
    number = OVER[over]([each.correct for each in usable], band)
    outcome, used = band.verdict(number), len(usable)
    if outcome == "unverified":
        return Indication(UNDECIDED, "the interval crosses the edge of what is claimed", number, used)
    if outcome == "reproduced":
        if incomplete:
            return Indication(incomplete.word, incomplete.why, number, used)
        return Indication(PAPER, "the whole interval is as claimed", number, used)
    if kind != "protocol" or not replicated:
        return Indication(AGAINST, "the whole interval lies outside what is claimed", number, used)
    replica = band.verdict(OVER[over]([each.replica for each in usable], band))
    word, why = {
        "reproduced": (EXPLANATION, "the alternative protocol gives what is stated, the correct one does not"),
        "unverified": (UNDECIDED, "the interval under the alternative protocol crosses the edge of what is stated"),
    }.get(replica, (AGAINST, "neither the correct nor the alternative protocol gives what is stated"))
    return Indication(word, why, number, used)


def _problem(kind: str, each: Compared, replicated: bool) -> str | None:
    """Why a cell or pair cannot be used for a claim of this kind."""
    if each.problem:
        return each.problem
    if kind == "order" and each.seeds < MIN_SEEDS:
        return f"an order between methods needs at least {MIN_SEEDS} seeds, not {each.seeds}"
    if kind == "protocol" and replicated and each.replica is None:
        return "not measured under the alternative protocol"
    return None
