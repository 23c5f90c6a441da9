"""List what the studies ask for at a scale, and what of it is done, missing or stale."""

from pathlib import Path

HELP = "list runs, evaluations, gates, tables and figures: done, missing or stale"


def add_arguments(parser) -> None:
    parser.add_argument("--scale", help="default: that of config/config.yaml")
    parser.add_argument("--studies", metavar="A,B", help="default: those of config/config.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments) -> int:
    import json

    from moat.config.grid import build_grid
    from moat.config.plan import plan
    from moat.config.project import Project
    from moat.config.selection import studies as selected

    project = Project(Path(arguments.project))
    config = project.config()
    studies = selected(project, arguments.studies)
    entries = plan(build_grid(project, arguments.scale or config["scale"], studies), project.root)
    if arguments.json:
        print(json.dumps({"scale": arguments.scale or config["scale"], "studies": studies, "jobs": entries}, indent=2))
    else:
        _print(entries)
    return 0


def _print(entries) -> None:
    from collections import Counter

    for entry in entries:
        why = f" ({', '.join(entry['stale'])} changed since)" if entry["stale"] else ""
        print(f"{entry['status']:8} {entry['kind']:10} {entry['path']}{why}")
    counts = Counter((entry["kind"], entry["status"]) for entry in entries)
    print()
    for kind in dict.fromkeys(entry["kind"] for entry in entries):
        parts = [f"{counts[kind, s]} {s}" for s in ("done", "stale", "missing") if counts[kind, s]]
        print(f"{kind + 's:':13} {', '.join(parts)}")
