"""The papers' headline claims, each computed from cells: stated, measured, explained, verdict, evidence.

``config/claims.yaml`` declares them. :func:`evaluate` returns one dict per claim; ``claims.csv``, ``.md`` and ``.tex``
(:mod:`moat.reporting.claims_tables`) and the top of the page are made from these:

    id, study, paper, text    what is claimed, and where
    stated                    as a phrase, e.g. ``4.02 points, tolerance 2``; ``unit``: ``points``, ``%``, ``% less``, …
    published_line            the line of config/published/<study>.csv that states it, or None
    measured                  {value, low, high} under the correct protocol, or None
    compared                  of how many cells, or pairs, ``measured`` is the one that decides; None: it is their mean
    protocol, explained       the alternative protocols that may explain it; {value, low, high} under them, or None
    explanation               in words, what may explain a difference
    explanation_status        whether it is one: see :func:`_explanation_status`
    verdict                   as of a cell: reproduced, explained, above, below, unverified, not-run
    reasons                   names as in ``checks_failed`` (see :func:`moat.reporting.layout.explain`), or why not run
    headline                  whether it stands for its paper at the top of the page
    budget                    what its numbers rest on, as a phrase
    kind                      which rule of :mod:`moat.reporting.indications` holds for it
    indication                None at a comparable scale, whose verdict speaks; otherwise {word, why, number, used, of,
                              tested}: what the scale shows, on ``used`` of ``of`` cells or pairs
    evidence                  one dict per cell: study, table, row, column, id (``<study>-<table>``, the table's anchor
                              on the page), measured, verdict, role (``of`` or ``against``)
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moat.base.errors import ConfigError, unknown_name
from moat.config.cell_spec import CORRECT
from moat.config.grid import Grid, declared_tables
from moat.config.grid_types import Cell
from moat.config.project import Project
from moat.config.published import PublishedNumbers
from moat.config.recipes import resolve_recipe
from moat.reporting import indications
from moat.reporting.layout import explain_distrust
from moat.reporting.quantities import COMPARING, OVER, QUANTITIES, Band, Number
from moat.reporting.tables import REMARKS, distrusted, records, stand_ins

Key = tuple[str, str, str, str, str]
Rows = Mapping[Key, Mapping[str, Any]]


def evaluate(
    project: Project, grid: Grid, content: pd.DataFrame, studies: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """One dict per claim of the studies, in the order of ``config/claims.yaml``.

    Those about tables, rows or columns that the scale leaves out are not run.

    Args:
        content: the rows of all cells, see :func:`moat.reporting.tables.frame`.
        studies: default: those of the grid's tables. A scale may show no table of a study whose claims are asked for.

    Raises:
        ConfigError: a claim about something that the studies do not have; names it.
    """
    if studies is None:
        studies = list(dict.fromkeys(table.study for table in grid.tables))
    scale = project.scale(grid.scale)
    if not scale.get("show_not_run", True) or "item" in scale.get("exclude", {}):
        # A claim names cells of the study, also where the scale shows a part of them.
        grid = dataclasses.replace(grid, tables=declared_tables(project, grid.scale, studies))
    rows = {
        tuple(row[name] for name in ("study", "table", "row", "column", "protocol")): row for row in records(content)
    }
    return [
        _claim(project, grid, name, spec, rows, scale["comparable"])
        for name, spec in project.claims().items()
        if spec["study"] in studies
    ]


def chosen(grid: Grid, name: str, spec: Mapping[str, Any], role: str) -> list[Cell]:
    """The cells that a claim is about, by their axes' labels, in the table's order; none if their study is not there.

    Raises:
        ConfigError: no such table or axis, or a label that no cell has.
    """
    if role not in spec:
        return []
    study, table = _table_of(spec, role)
    if study not in {each.study for each in grid.tables}:
        return []
    labels = {**spec.get("cells", {}), **_labels(spec, role)}
    # What is claimed of a method is claimed of its best epoch; further rows show its last one.
    cells = [cell for cell in grid.table(study, table).cells if cell.weights == "best"]
    for axis, wanted in labels.items():
        known = list(dict.fromkeys(dict(cell.axes).get(axis, "") for cell in cells))
        for label in wanted:
            if label not in known:
                raise ConfigError(f"config/claims.yaml: {name}: {unknown_name(label, known, what=f'label of {axis}')}")
    return [cell for cell in cells if all(dict(cell.axes).get(axis) in wanted for axis, wanted in labels.items())]


def _claim(project: Project, grid: Grid, name: str, spec, rows: Rows, comparable: bool) -> dict[str, Any]:
    _check(name, spec)
    unit = spec.get("unit", "points") + {"increase": " more", "reduction": " less"}.get(spec["quantity"], "")
    band, stated, line = _stated(project, name, spec, unit)
    cells = {role: chosen(grid, name, spec, role) for role in ("of", "against")}
    pairs = _pairs(name, spec, cells)
    protocols = spec.get("protocol", [])
    protocols = [protocols] if isinstance(protocols, str) else protocols
    measured, missing = _number(spec, pairs, rows, [CORRECT], band)
    explained = _number(spec, pairs, rows, protocols, band)[0] if protocols else None
    if measured is None:
        verdict, reasons = "not-run", [missing]
    else:
        verdict, reasons = band.verdict(measured), [] if comparable else ["budget"]
        for cell in (cell for found in cells.values() for cell in found):
            reasons += filter(None, (rows[_key(cell, CORRECT)]["checks_failed"] or "").split(";"))
            reasons += stand_ins(cell)
        if any(reason not in REMARKS for reason in reasons):
            verdict = "unverified"
        elif verdict in ("above", "below") and explained is not None and band.verdict(explained) == "reproduced":
            verdict = verdict if _distrusted(pairs, rows, protocols) else "explained"
    return {
        "id": name,
        "study": spec["study"],
        "paper": spec.get("paper", project.study(spec["study"]).get("paper", "this project")),
        "text": spec["text"],
        "stated": stated,
        "unit": unit,
        "published_line": line,
        "measured": measured and vars(measured),
        "compared": len(pairs) if spec.get("over") == "each" else None,
        "protocol": " or ".join(protocols) or None,
        "explained": explained and vars(explained),
        "explanation": spec["explanation"],
        "explanation_status": _explanation_status(verdict, explained),
        "verdict": verdict,
        "reasons": list(dict.fromkeys(reasons)),
        "headline": spec.get("headline", False),
        "budget": _budget(project, grid.scale, pairs, rows),
        "kind": _kind(spec),
        "indication": None if comparable else _indication(project, grid, name, spec, pairs, rows, protocols, band),
        "evidence": [_evidence(cell, rows, role) for role, found in cells.items() for cell in found],
    }


def _kind(spec) -> str:
    """A difference is one between methods unless the claim says otherwise; the other quantities leave it open."""
    return spec.get("kind", "order")


def _indication(project: Project, grid: Grid, name: str, spec, pairs, rows: Rows, protocols, band: Band) -> dict:
    kind, over = _kind(spec), spec.get("over", "mean")
    tested, side = "as stated", band
    if kind == "order" and {"published", "equals"} & set(spec["stated"]):
        # An amount is that of the paper's nets; which method is ahead can be tested on smaller ones.
        tested, side = ("above 0", Band(0, math.inf)) if band.low + band.high > 0 else ("below 0", Band(-math.inf, 0))
    if pairs:
        compared = [_compared(project, grid.scale, spec, pair, rows, protocols) for pair in pairs]
        found = indications.of_claim(kind, over, side, compared, replicated=bool(protocols))
    else:
        found = indications.Indication(indications.NOT_TESTABLE, _other_study(spec))
    return {
        **vars(found),
        "number": found.number and vars(found.number),
        "of": len(pairs),
        "tested": tested,
    }


def _compared(project: Project, scale: str, spec, pair, rows: Rows, protocols) -> indications.Compared:
    """The numbers of one cell or pair, and why they cannot be used."""
    correct, missing = _numbers(spec, [pair], rows, [CORRECT])
    replica, _ = _numbers(spec, [pair], rows, protocols)
    left_out = [cell for cell in pair if cell.not_run is not None or _key(cell, CORRECT) not in rows]
    found = [rows.get(_key(cell, CORRECT)) or {} for cell in pair]
    problem = missing
    if left_out:
        cell = left_out[0]
        problem = f"{cell.row} × {cell.column}: {cell.not_run or f'not part of scale {scale}'}"
    elif _kind(spec) == "protocol" and spec["quantity"] == "value" and (less := _reduced(project, scale, pair[0])):
        return indications.Compared(None, None, 0, f"{pair[0].row}: {less}", left_out=True)
    elif not problem:
        doubts = [reason for row in found for reason in distrusted(row)]
        problem = "; ".join(map(explain_distrust, dict.fromkeys(doubts))) or None
        if not problem and protocols and _distrusted([pair], rows, protocols):
            problem = "the number under the alternative protocol is of other weights"
    seeds = min(len((row.get("seeds") or "").split(";")) if row.get("seeds") else 0 for row in found)
    return indications.Compared(correct[0], replica[0], seeds, problem, left_out=bool(left_out))


def _reduced(project: Project, scale: str, cell: Cell) -> str | None:
    """How a scale makes a cell's net or images smaller than the paper's, so that a number of theirs is not its own."""
    spec = project.scale(scale)
    width = {**spec.get("model", {}), **resolve_recipe(project, scale, cell.method).get("model", {})}.get("width", 1)
    if width != 1:
        return f"its net has {width:g} of the width"
    replaced = dict(cell.substitutes)
    if "arch" in replaced:
        return f"the net is {cell.arch} in place of {replaced['arch']}"
    sizes = [project.dataset(name)["image_size"] for name in (cell.dataset, replaced.get("dataset", cell.dataset))]
    size = spec["data"].get("image_size") or sizes[0]
    return None if size == sizes[1] else f"its images have {size} pixels a side, not {sizes[1]}"


def _budget(project: Project, scale: str, pairs, rows: Rows) -> str:
    """What the numbers of a claim rest on, as a phrase, e.g. ``width 0.25, 5 epochs, 2 seeds``."""
    spec = project.scale(scale)
    found = (rows.get(_key(cell, CORRECT)) for pair in pairs for cell in pair)
    measured = [row for row in found if row is not None and row["measured"] is not None]
    epochs, images = spec.get("recipe", {}).get("epochs"), spec["data"].get("train_limit")
    seeds = [len(row["seeds"].split(";")) for row in measured if row["seeds"]]
    tested = [int(row["n"]) for row in measured if row["n"] is not None]
    said = [f"width {spec['model']['width']:g}"] if spec.get("model", {}).get("width", 1) != 1 else []
    said += [f"{epochs} epochs"] if epochs else []
    said += [f"{images:,} training images"] if images else []
    said += [_range(seeds, "seed")] if seeds else []
    said += [f"{_range(tested, 'image')} attacked or classified"] if tested else []
    return ", ".join(said)


def _range(counts: Sequence[int], what: str) -> str:
    low, high = min(counts), max(counts)
    return (f"{high:,}" if low == high else f"{low:,} to {high:,}") + f" {what}{'s' if high != 1 else ''}"


def _explanation_status(verdict: str, explained: Number | None) -> str:
    """What stands before a claim's explanation: it is a supposition until its protocol's number agrees."""
    if verdict == "explained":
        return "explanation"
    if verdict in ("above", "below") and explained is not None:
        return "possible explanation (tested here, not confirmed)"
    return "possible explanation (not tested here)"


def _check(name: str, spec) -> None:
    where = f"config/claims.yaml: {name}"
    if spec["quantity"] not in QUANTITIES:
        raise ConfigError(f"{where}: " + unknown_name(spec["quantity"], QUANTITIES, what="quantity"))
    if (spec["quantity"] in COMPARING) != ("against" in spec):
        raise ConfigError(f"{where}: against: is for the quantities {', '.join(COMPARING)}, and needed there")
    if not {"published", "equals", "at_least", "at_most"} & set(spec["stated"]):
        raise ConfigError(f"{where}: stated: says no number; allowed: published, equals, at_least, at_most")
    if "kind" not in spec and spec["quantity"] != "difference":
        raise ConfigError(
            f"{where}: kind: is missing, and only a difference does without; allowed: {', '.join(indications.KINDS)}"
        )


def _stated(project: Project, name: str, spec, unit: str) -> tuple[Band, str, int | None]:
    """The band in which the claim puts its number, the same as a phrase, and the line of the file that states it."""
    stated, line = spec["stated"], None
    if "published" in stated:
        numbers = PublishedNumbers(spec["study"], project.published(spec["study"]))
        found = numbers.find(stated["published"], where=f"config/claims.yaml: {name}", may_lack=False)
        line = found.line
        try:
            # 4.02, or a range such as 25-30.
            first, _, last = str(found.value).partition("-")
            low, high = float(first), float(last or first)
        except ValueError as error:
            where = f"config/claims.yaml: {name}: {found.value!r}"
            raise ConfigError(f"{where} is no number and no range such as 25-30") from error
    elif "equals" in stated:
        low = high = stated["equals"]
    else:
        low, high = stated.get("at_least", -math.inf), stated.get("at_most", math.inf)
    bound = not {"published", "equals"} & set(stated)
    # A bound is meant as it is written, unless the claim says otherwise.
    tolerance = stated.get("tolerance", 0 if bound else project.study(spec["study"])["tolerance"])
    if bound:
        phrase = " and ".join([f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf))
    else:
        phrase = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    each = "each " if spec.get("over") == "each" else ""
    # No "±": beside a published number that is its spread between runs.
    allowed = f", tolerance {tolerance:g}" if tolerance or not bound else ""
    return Band(low - tolerance, high + tolerance), f"{each}{phrase} {unit}{allowed}", line


def _pairs(name: str, spec, cells: Mapping[str, list[Cell]]) -> list[tuple[Cell, ...]]:
    """The cells from each of which, or pairs of cells from each of which, one number is computed.

    As many cells as there are to compare with are paired in order. A single one of a kind (of a data set, and of each
    label on the axes that are not compared) is paired with every one of its kind on the other side.

    Raises:
        ConfigError: neither is possible.
    """
    of, against = cells["of"], cells["against"]
    if spec["quantity"] not in COMPARING:
        return [(cell,) for cell in of]
    if len(of) == len(against):
        return list(zip(of, against, strict=True))
    if not of or not against:
        # The study of one of the two tables is not there.
        return []
    named = set(_labels(spec, "of")) | set(_labels(spec, "against"))

    def kind(cell: Cell) -> tuple:
        return (cell.dataset, *(each for each in cell.axes if each[0] not in named))

    single = {side: {kind(cell): cell for cell in found} for side, found in cells.items()}
    if single["of"].keys() == single["against"].keys():
        if len(single["of"]) == len(of):
            return [(single["of"][kind(cell)], cell) for cell in against]
        if len(single["against"]) == len(against):
            return [(cell, single["against"][kind(cell)]) for cell in of]
    sizes = f"{len(of)} cells against {len(against)}"
    raise ConfigError(
        f"config/claims.yaml: {name}: {sizes}; {spec['quantity']} needs as many of each, or one of each kind"
    )


def _number(spec, pairs, rows: Rows, protocols: Sequence[str], band: Band) -> tuple[Number | None, str | None]:
    """The claim's number, or None and what is missing; see :func:`_numbers`."""
    numbers, missing = _numbers(spec, pairs, rows, protocols)
    if not pairs:
        return None, _other_study(spec)
    return (None, missing) if None in numbers else (OVER[spec.get("over", "mean")](numbers, band), None)


def _numbers(spec, pairs, rows: Rows, protocols: Sequence[str]) -> tuple[list[Number | None], str | None]:
    """The claim's quantity of each pair, each cell's number under the first of the protocols that it has.

    Under alternative protocols, a cell that none of them changes (clean accuracy) counts with its correct number, but
    at least one must have been measured under them.

    Returns:
        a number for each pair, None where one of its cells is not measured; and the first cell that is not.
    """
    missing = None
    if not any(_protocol_of(cell, protocols) for pair in pairs for cell in pair):
        return [None] * len(pairs), "nothing is measured under the protocol"
    found: list[Number | None] = []
    for pair in pairs:
        keys = [_key(cell, _protocol_of(cell, protocols) or CORRECT) for cell in pair]
        measured = [rows.get(key) or {"measured": None} for key in keys]
        absent = next((cell for cell, row in zip(pair, measured, strict=True) if row["measured"] is None), None)
        if absent is not None:
            missing = missing or f"{absent.study}-{absent.table}: {absent.row} × {absent.column} is not measured"
            found.append(None)
            continue
        of, *against = ([Number(row["measured"], row["ci_low"], row["ci_high"])] for row in measured)
        found += QUANTITIES[spec["quantity"]](of, *(against or [of]))
    return found, missing


def _other_study(spec) -> str:
    tables = {_table_of(spec, role)[0] for role in ("of", "against") if role in spec}
    return f"the study {' or '.join(sorted(tables))} is not among those asked for"


def _protocol_of(cell: Cell, protocols: Sequence[str]) -> str | None:
    """The first of the protocols under which a cell is declared."""
    declared = {each.protocol for each in cell.each()}
    return next((protocol for protocol in protocols if protocol in declared), None)


def _distrusted(pairs, rows: Rows, protocols: Sequence[str]) -> bool:
    """Whether a number under alternative protocols must not be taken at face value."""
    used = ((cell, _protocol_of(cell, protocols)) for pair in pairs for cell in pair)
    return any(distrusted(rows.get(_key(cell, protocol), {})) for cell, protocol in used if protocol)


def _evidence(cell: Cell, rows: Rows, role: str) -> dict[str, Any]:
    row = rows.get(_key(cell, CORRECT), {})
    place = {name: getattr(cell, name) for name in ("study", "table", "row", "column")}
    said = {"measured": row.get("measured"), "verdict": row.get("verdict") or ""}
    return {**place, "id": f"{cell.study}-{cell.table}", **said, "role": role}


def _table_of(spec, role: str) -> tuple[str, str]:
    name = spec[role].get("table", spec["table"])
    study, separator, table = name.partition("-")
    return (study, table) if separator else (spec["study"], study)


def _labels(spec, role: str) -> dict[str, list[str]]:
    return {axis: labels for axis, labels in spec[role].items() if axis != "table"}


def _key(cell: Cell, protocol: str) -> Key:
    return (cell.study, cell.table, cell.row, cell.column, protocol)
