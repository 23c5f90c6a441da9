"""List what the studies ask for at a scale: what of it is done, missing or stale, and how long the missing takes.

With --budget-gpu-hours, select the table cells of greatest total priority that fit, and print the command to make them.
"""

from pathlib import Path

HELP = "what is done, missing or stale; what the missing costs, and what a budget buys of it"

# So many targets still stand in the command itself; more go into a file.
INLINE_TARGETS = 8


def add_arguments(parser) -> None:
    parser.add_argument("--scale", help="default: that of config/config.yaml")
    parser.add_argument("--studies", metavar="A,B", help="default: those of config/config.yaml")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many GPUs there are (default: 1)")
    parser.add_argument(
        "--hardware", default="auto", metavar="X", help="an entry of config/planner.yaml (default: this machine's)"
    )
    parser.add_argument("--budget-gpu-hours", type=float, metavar="H", help="choose the cells that H GPU-hours buy")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments) -> int:
    import json

    from moat.base.errors import ConfigError
    from moat.config import studies_option
    from moat.config.grid import build_grid
    from moat.config.project import Project
    from moat.planning import report

    project = Project(Path(arguments.project))
    if arguments.gpus < 1:
        raise ConfigError(f"--gpus {arguments.gpus}: allowed: 1 or more")
    scale = arguments.scale or project.config()["scale"]
    studies = studies_option.studies(project, arguments.studies)
    grid = build_grid(project, scale, studies)
    planned = report.describe(project, grid, studies, hardware=arguments.hardware, machines=arguments.gpus)
    if arguments.budget_gpu_hours is not None:
        planned["budget"] = report.describe_budget(project, grid, planned, arguments.budget_gpu_hours)
        _list_targets(project, planned)
    if arguments.json:
        print(json.dumps(planned, indent=2))
    else:
        print("\n".join(report.lines(planned)))
    return 0


def _list_targets(project, planned) -> None:
    """Add the command; where the targets are many, write them into a file that it reads."""
    from moat.base.files import write_text
    from moat.planning.estimate import snakemake_command

    targets, listed = planned["budget"]["targets"], None
    if len(targets) > INLINE_TARGETS:
        listed = Path("work") / "plan" / f"{planned['scale']}-targets.txt"
        write_text(project.root / listed, "\n".join(targets) + "\n")
    planned["budget"]["command"] = targets and snakemake_command(
        planned["scale"],
        planned["studies"],
        targets,
        planned["machines"],
        on_gpus=planned["hardware"] != "cpu",
        listed=listed,
    )
