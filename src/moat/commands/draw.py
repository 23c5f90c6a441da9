"""Draw figures as PNG (300 dpi), PDF (vector) and CSV (the points) from the evaluations."""

HELP = "draw figures from the evaluations"


def add_arguments(parser) -> None:
    parser.add_argument("--scale", required=True, metavar="X", help="which results: quickstart, mini, paper, …")
    parser.add_argument("--study", metavar="S", help="only the figures of this study")
    parser.add_argument("--figure", metavar="F", help="only this figure of --study")
    parser.add_argument("--studies", metavar="A,B", help="these studies (default: those of config/config.yaml)")
    parser.add_argument("--results", default="results", metavar="DIR", help="folder of the results (default: results)")


def run(arguments) -> None:
    from moat.base.errors import ConfigError
    from moat.config import studies_option
    from moat.config.grid import build_grid
    from moat.config.project import Project
    from moat.reporting import figures
    from moat.reporting.results import Results

    if arguments.figure and not arguments.study:
        raise ConfigError("--figure needs --study: figures of two studies may share a name")
    project = Project(arguments.project)
    studies = studies_option.studies(project, arguments.studies, arguments.study)
    grid = build_grid(project, arguments.scale, studies)
    chosen = (grid.figure(arguments.study, arguments.figure),) if arguments.figure else grid.figures
    results = Results(arguments.results, arguments.scale, project=project)
    frames = figures.Frames(results, project.attacks(), project.scale(arguments.scale))
    for figure in chosen:
        prepare = getattr(figures.get(figure.kind), "expect", None)
        if prepare is not None:
            prepare(figure, results)
    for figure in chosen:
        _draw(figure, frames)


def _draw(figure, frames) -> None:
    from moat.reporting import figures, style

    plugin = figures.get(figure.kind)
    base = figures.files(figure, frames.results)[0].with_suffix("")
    if figures.drawn_before(figure, frames.results):
        _keep(figure, frames.results, base)
    else:
        with style.applied() as look:
            canvas, content = plugin.draw(figure, frames, look)
            style.save(canvas, content, base, title=figure.title)
    print(base)
    for note in figures.notes(figure, frames.results):
        print(f"  {note}")


def _keep(figure, results, base) -> None:
    """Leave a figure's files as they are, but for their times: Snakemake wants what it asked for to be of now."""
    import sys

    from moat.config import paths
    from moat.reporting import figures

    for path in figures.files(figure, results):
        path.touch()
    probes = [paths.probe(results.scale, probe.run, probe.name) for probe in figure.probes]
    missing = [str(path) for path in probes if not results.file(path).exists()]
    print(
        f"moat draw: {base}: left as it is: it cannot be drawn again without {', '.join(missing)} "
        "(probes are not in git; `moat probe` makes them from the models)",
        file=sys.stderr,
    )
