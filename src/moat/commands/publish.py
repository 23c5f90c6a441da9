"""Copy the evidence of a scale to results/evidence/<scale>, which git keeps: rows, records, histories, checks, the
weights of a few headline nets; and make its tables, figures and page there."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from moat.commands import draw, report, tabulate
from moat.commands.options import ShownRequest, add_shown_arguments, shown_request
from moat.config import paths
from moat.config.grid import Run
from moat.config.records import Records
from moat.reporting import evidence


@dataclass(frozen=True)
class Request:
    """What to publish.

    Attributes:
        weights: the runs whose weights are published, too.
        into: the folder of all scales' evidence.
        allow_missing: whether the new evidence may lack results that the published one has, and the weights.
    """

    shown: ShownRequest
    weights: tuple[Run, ...]
    into: Path
    allow_missing: bool


def add_arguments(parser: ArgumentParser) -> None:
    add_shown_arguments(parser)
    parser.add_argument(
        "--weights",
        action="append",
        metavar="DATASET/ARCH/METHOD/seedK",
        help=f"publish this run's weights; again for up to {evidence.HEADLINES} (default: the scale's `headline`)",
    )


def request(arguments: Namespace) -> Request:
    shown = shown_request(arguments)
    headline = shown.project.scale(shown.grid.scale).get("headline", [])
    names = headline if arguments.weights is None else arguments.weights
    return Request(
        shown=shown,
        weights=tuple(evidence.headline_runs(shown.grid, names)),
        into=shown.project.root / paths.evidence(),
        allow_missing=arguments.allow_missing,
    )


def run(request: Request) -> None:
    shown, grid = request.shown, request.shown.grid
    results = Records(shown.results, grid.scale, shown.project)
    missing = evidence.copy(results, grid, request.weights, request.into, allow_missing=request.allow_missing)
    there = replace(shown, results=request.into, selection="")
    tabulate.run(tabulate.Request(there, grid.tables, cells=False))
    tabulate.run(tabulate.Request(there, grid.tables, cells=True))
    draw.run(draw.Request(there, grid.figures))
    report.run(there)
    size = evidence.finish(grid, shown.studies, request.into, shown.project.root)
    print(f"{request.into / grid.scale}: {size / 10**6:.1f} MB")
    if missing:
        print(f"not published, because it is not there: {missing[0]}{evidence.more(missing)}")
