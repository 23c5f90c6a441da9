"""Say what this machine can do: torch, GPUs, data, workflow tools, disk, and what is stale."""

from pathlib import Path

HELP = "what this machine can do: torch, GPUs, data, SLURM, DVC, disk"


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments) -> int:
    import json

    from moat.config.project import Project
    from moat.doctor import examine

    checks = examine(Project(Path(arguments.project)))
    if arguments.json:
        print(json.dumps([vars(check) for check in checks], indent=2))
        return 0
    for check in checks:
        print(f"{check.state:8} {check.name:20} {check.message}")
    return 0
