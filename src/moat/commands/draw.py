"""Draw figures as PNG (300 dpi), PDF (vector) and CSV (the points) from the evaluations."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from moat.base.errors import ConfigError
from moat.commands.options import ShownRequest, add_shown_arguments, shown_request
from moat.config import paths
from moat.config.grid import Figure
from moat.config.shown import of_figure
from moat.reporting import figures, fullness, style
from moat.reporting.results import Results


@dataclass(frozen=True)
class Request:
    """Some figures."""

    shown: ShownRequest
    figures: tuple[Figure, ...]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--study", metavar="S", help="only the figures of this study")
    parser.add_argument("--figure", metavar="F", help="only this figure of --study")
    add_shown_arguments(parser)


def request(arguments: Namespace) -> Request:
    if arguments.figure and not arguments.study:
        raise ConfigError("--figure needs --study: figures of two studies may share a name")
    shown = shown_request(arguments, arguments.study)
    grid = shown.grid
    chosen = (grid.figure(arguments.study, arguments.figure),) if arguments.figure else grid.figures
    if arguments.study and any(figure.shows == "cells" for figure in chosen):
        # It shows the cells of all studies, whichever of them has it.
        arguments.study = None
        shown = shown_request(arguments)
    return Request(shown, chosen)


def run(request: Request) -> None:
    project, scale = request.shown.project, request.shown.grid.scale
    results = Results(request.shown.results, scale, project=project)
    frames = figures.Frames(results, project.attacks(), project.scale(scale))
    for figure in request.figures:
        prepare = getattr(figures.get(figure.kind), "expect", None)
        if prepare is not None:
            prepare(figure, results)
        lost = [] if request.shown.allow_missing else figures.lost_lines(figure, results)
        if lost:
            raise ConfigError(fullness.refusal(figures.files(figure, results)[0], lost))
    statuses = request.shown.statuses(results)
    for figure in request.figures:
        base = figures.files(figure, results)[0].with_suffix("")
        if figures.drawn_before(figure, results):
            _keep(figure, results, base)
        else:
            with style.applied() as look:
                canvas, content = figures.get(figure.kind).draw(figure, frames, look)
                style.save(canvas, content, base, title=figure.title)
        statuses.write_record(of_figure(statuses.grid, statuses.studies, figure))
        print(base)
        for note in figures.notes(figure, results):
            print(f"  {note}")


def _keep(figure: Figure, results: Results, base: Path) -> None:
    """Leave a figure's files as they are, except for their times: Snakemake wants its outputs newer than its inputs."""
    for path in figures.files(figure, results):
        path.touch()
    probes = [paths.probe(results.scale, probe.run, probe.name) for probe in figure.probes]
    missing = [str(path) for path in probes if not results.file(path).exists()]
    print(
        f"moat draw: {base}: left as it is: it cannot be drawn again without {', '.join(missing)} "
        "(probes are not in git; `moat probe` makes them from the models)",
        file=sys.stderr,
    )
