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
from moat.config.shown import select, selection_of
from moat.planning import report
from moat.planning.estimate import estimate, snakemake_command


@dataclass(frozen=True)
class Request:
    """A plan of a grid on some hardware.

    Attributes:
        hardware: a name of config/planner.yaml, or "auto".
        gpus: how many of them.
        budget: GPU-hours to spend; None for a plan of everything.
        listed: the file that the budget's targets are written to; None: the command itself lists them.
    """

    project: Project
    studies: list[str]
    grid: Grid
    hardware: str
    gpus: int
    budget: float | None
    listed: Path | None
    json: bool


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--scale", help="default: that of config/config.yaml")
    parser.add_argument("--studies", metavar="A,B", help="default: those of config/config.yaml")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many GPUs there are (default: 1)")
    parser.add_argument(
        "--hardware",
        default="auto",
        metavar="X",
        help="h200, h100, a100, l40s, rtx-4090, cpu or another entry of config/planner.yaml (default: this machine's)",
    )
    parser.add_argument(
        "--budget-gpu-hours", type=float, metavar="H", help="choose the cells that fit into H GPU-hours"
    )
    parser.add_argument(
        "--targets",
        type=Path,
        metavar="FILE",
        help="write the chosen targets into this file; the command reads it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def request(arguments: Namespace) -> Request:
    project = Project(arguments.project)
    project.require_checkout("moat plan")
    if arguments.gpus < 1:
        raise ConfigError(f"--gpus {arguments.gpus}: allowed: 1 or more")
    studies = studies_option.studies(project, arguments.studies)
    return Request(
        project=project,
        studies=studies,
        grid=select(
            build_grid(project, arguments.scale or project.config()["scale"], studies), selection_of(project, studies)
        ),
        hardware=arguments.hardware,
        gpus=arguments.gpus,
        budget=arguments.budget_gpu_hours,
        listed=arguments.targets,
        json=arguments.json,
    )


def run(request: Request) -> None:
    project, grid = request.project, request.grid
    estimated = estimate(project, grid, request.hardware, request.studies)
    planned = report.describe(grid, estimated, studies=request.studies, machines=request.gpus)
    if request.budget is not None:
        budget = report.describe_budget(project, grid, estimated, machines=request.gpus, hours=request.budget)
        planned["budget"] = {**budget, "command": _command(request, estimated.hardware, budget["targets"])}
    print(json.dumps(planned, indent=2) if request.json else "\n".join(report.lines(planned)))


def _command(request: Request, hardware: str, targets: list[str]) -> str | list[str]:
    """The command that makes the targets; with ``listed``, it reads them from that file, which is written here."""
    if not targets:
        return targets
    if request.listed is not None:
        write_text(request.listed, "\n".join(targets) + "\n")
    grid, on_gpus = request.grid, hardware != "cpu"
    return snakemake_command(grid.scale, request.studies, targets, request.gpus, on_gpus=on_gpus, listed=request.listed)
