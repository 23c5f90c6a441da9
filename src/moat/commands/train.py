"""Train one run, or continue it: killed at any time, the same command ends with the same weights."""

from pathlib import Path

from moat.machine import devices

HELP = "train one run; resumable"


def add_arguments(parser) -> None:
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the run's files go")
    parser.add_argument("--data", type=Path, metavar="FILE", help="prepared data (default: results/<scale>/data/…)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="checkpoints (default: work/ and the path of --out)")
    parser.add_argument(
        "--initialize-from",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a finished run that the recipe starts from, by its name there",
    )
    devices.add_arguments(parser)


def run(arguments) -> int:
    import logging

    from moat.base.errors import ConfigError
    from moat.base.signals import exit_on_sigterm
    from moat.config import paths
    from moat.config.project import Project
    from moat.config.recipes import resolve_run

    exit_on_sigterm("nothing was trained yet that is not saved; the same command continues")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    project = Project(Path(arguments.project))
    project.dataset(arguments.dataset)
    if arguments.seed < 0:
        raise ConfigError(f"--seed {arguments.seed}: allowed: 0 or more")
    resolved = resolve_run(
        project,
        arguments.scale,
        dataset=arguments.dataset,
        arch=arguments.arch,
        method=arguments.method,
        seed=arguments.seed,
    )
    initialize_from = _initialize_from(arguments.initialize_from, resolved["recipe"])
    arguments.device = arguments.until_end.enter_context(devices.lease(arguments.device))
    device = devices.select(arguments.device, arguments.threads)
    work = arguments.work or work_folder(arguments.out)
    _forget_unreadable(work)

    from moat.training.runs import Run

    training = Run(
        resolved=resolved,
        data=arguments.data or Path(paths.prepared(arguments.scale, arguments.dataset)),
        out=arguments.out,
        work=work,
        initialize_from=initialize_from,
        evaluation=project.scale(arguments.scale)["evaluation"],
        device=device,
        root=project.root,
    )
    training.train(on_epoch=_print_row)
    return 0


def work_folder(out: Path) -> Path:
    """``work/`` and the path of ``out`` below the working directory (or its whole path, where it lies elsewhere)."""
    absolute, here = out.resolve(), Path.cwd()
    return Path("work") / (absolute.relative_to(here) if absolute.is_relative_to(here) else absolute.relative_to("/"))


def _forget_unreadable(work: Path) -> None:
    """Remove records of finished runs that are no JSON: nothing vouches for what was kept with them.

    A run.json that was cut short in place takes along its kept copy, which is a hard link.
    """
    import logging

    from moat.base.errors import DataError
    from moat.base.files import read_json

    for record in sorted(work.glob("*/finished/run.json")):
        try:
            read_json(record)
        except DataError as error:
            logging.getLogger(__name__).warning("%s; forgotten, and trained again", error)
            record.unlink(missing_ok=True)


def _initialize_from(given: list[str], recipe) -> dict[str, Path]:
    from moat.base.errors import ConfigError

    folders = {}
    for item in given:
        name, separator, folder = item.partition("=")
        if not separator:
            raise ConfigError(f"--initialize-from {item}: write NAME=DIR")
        folders[name] = Path(folder)
    wanted = {run["name"] for run in recipe.get("initialize_from", [])}
    if set(folders) != wanted:
        said = f"given {sorted(folders) or 'none'}; the recipe starts from {sorted(wanted) or 'none'}"
        raise ConfigError(f"--initialize-from: {said}")
    return folders


def _print_row(row) -> None:
    numbers = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
    print(f"epoch {row['epoch']}: {numbers}", flush=True)
