"""Write report.html: one self-contained page with every table, figure, check and run of a scale."""

from argparse import ArgumentParser, Namespace

from moat.base.files import write_text
from moat.commands.options import ShownRequest, add_shown_arguments, shown_request
from moat.config import paths
from moat.reporting import fullness, page
from moat.reporting.results import Results


def add_arguments(parser: ArgumentParser) -> None:
    add_shown_arguments(parser)


def request(arguments: Namespace) -> ShownRequest:
    return shown_request(arguments)


def run(request: ShownRequest) -> None:
    results = Results(request.results, request.grid.scale, project=request.project)
    path = results.file(paths.report(request.grid.scale, request.selection))
    if path.exists() and not request.allow_missing:
        shown = [
            results.file(paths.cells(request.grid.scale, request.selection)),
            *fullness.cells_of(request.grid.tables, results),
        ]
        fullness.refuse_losses(request.grid.tables, shown, results, path)
    statuses = request.statuses(results)
    write_text(path, page.render(request.project, request.grid, statuses, results))
    statuses.write_record(statuses.shown[-1])
    print(path.resolve())
