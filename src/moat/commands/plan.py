"""List what the studies ask for at a scale: what of it is done, missing or stale, and how long the missing takes.

With --budget-gpu-hours, select the table cells of greatest total priority that fit, and print the command to make them.
"""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from moat.base.errors import ConfigError
from moat.base.files import write_text
from moat.config import studies_option
from moat.config.grid import Grid, build_grid
from moat.config.project import Project
from moat.planning import report
from moat.planning.estimate import estimate, snakemake_command

# With more targets than this the command reads them from a file.
INLINE_TARGETS = 8


@dataclass(frozen=True)
class Request:
    """A plan of a grid on some hardware.

    Attributes:
        hardware: a name of config/planner.yaml, or "auto".
        gpus: how many of them.
        budget: GPU-hours to spend; None for a plan of everything.
    """

    project: Project
    studies: list[str]
    grid: Grid
    hardware: str
    gpus: int
    budget: float | None
    json: bool


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--scale", help="default: that of config/config.yaml")
    parser.add_argument("--studies", metavar="A,B", help="default: those of config/config.yaml")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many GPUs there are (default: 1)")
    parser.add_argument(
        "--hardware", default="auto", metavar="X", help="an entry of config/planner.yaml (default: this machine's)"
    )
    parser.add_argument("--budget-gpu-hours", type=float, metavar="H", help="choose the cells that H GPU-hours buy")
    parser.add_argument("--json", action="store_true", help="print JSON")


def request(arguments: Namespace) -> Request:
    project = Project(arguments.project)
    if arguments.gpus < 1:
        raise ConfigError(f"--gpus {arguments.gpus}: allowed: 1 or more")
    studies = studies_option.studies(project, arguments.studies)
    return Request(
        project=project,
        studies=studies,
        grid=build_grid(project, arguments.scale or project.config()["scale"], studies),
        hardware=arguments.hardware,
        gpus=arguments.gpus,
        budget=arguments.budget_gpu_hours,
        json=arguments.json,
    )


def run(request: Request) -> None:
    project, grid = request.project, request.grid
    estimated = estimate(project, grid, request.hardware)
    planned = report.describe(grid, estimated, studies=request.studies, machines=request.gpus)
    if request.budget is not None:
        budget = report.describe_budget(project, grid, estimated, machines=request.gpus, hours=request.budget)
        planned["budget"] = {**budget, "command": _command(request, estimated.hardware, budget["targets"])}
    print(json.dumps(planned, indent=2) if request.json else "\n".join(report.lines(planned)))


def _command(request: Request, hardware: str, targets: list[str]) -> str | list[str]:
    """The command that makes the targets; where they are many, it reads them from a file that is written here."""
    if not targets:
        return targets
    listed = None
    if len(targets) > INLINE_TARGETS:
        listed = Path("work") / "plan" / f"{request.grid.scale}-targets.txt"
        write_text(request.project.root / listed, "\n".join(targets) + "\n")
    on_gpus = hardware != "cpu"
    return snakemake_command(request.grid.scale, request.studies, targets, request.gpus, on_gpus=on_gpus, listed=listed)
