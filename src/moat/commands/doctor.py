"""Say what this machine can do: torch, GPUs, data, workflow tools, disk, and what is stale."""

from pathlib import Path

# Of many stale results so many are shown.
SHOWN = 3

HELP = "what this machine can do: torch, GPUs, data, SLURM, DVC, disk"


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--verbose", action="store_true", help="list every stale result")


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
        shown = check.details if arguments.verbose else check.details[:SHOWN]
        for detail in shown:
            print(f"{'':29} {detail}")
        if len(shown) < len(check.details):
            print(f"{'':29} and {len(check.details) - len(shown)} more; `moat doctor --verbose` lists them")
    return 0
