"""Write report.html: one self-contained page with every table, figure, check and run of a scale."""

HELP = "write the page with all results"


def add_arguments(parser) -> None:
    parser.add_argument("--scale", required=True, metavar="X", help="which results: quickstart, mini, paper, …")
    parser.add_argument("--studies", metavar="A,B", help="these studies (default: those of config/config.yaml)")
    parser.add_argument("--results", default="results", metavar="DIR", help="folder of the results (default: results)")


def run(arguments) -> None:
    from moat.base.files import write_text
    from moat.config import paths, studies_option
    from moat.config.grid import build_grid
    from moat.config.project import Project
    from moat.reporting import page
    from moat.reporting.results import Results

    project = Project(arguments.project)
    studies = studies_option.studies(project, arguments.studies)
    grid = build_grid(project, arguments.scale, studies)
    results = Results(arguments.results, arguments.scale, project=project)
    path = results.file(paths.report(arguments.scale))
    write_text(path, page.render(project, grid, studies, results))
    print(path.resolve())
