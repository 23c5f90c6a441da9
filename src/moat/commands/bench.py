"""Measure speed on this machine: a module of moat.benchmarking, or a script of the project's benchmarks/.

Options of a benchmark come after its name: `moat bench train --help`.
"""

import sys
from pathlib import Path

from moat.machine import devices

HELP = "measure how fast this machine trains, attacks, reads data, plans"


def add_arguments(parser) -> None:
    import argparse

    parser.add_argument("benchmark", metavar="NAME", help="what to measure; `moat bench list` lists what there is")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="…", help="options of the benchmark; --json")


def run(arguments) -> int:
    from moat import benchmarking
    from moat.base.errors import ConfigError, unknown_name

    project = Path(arguments.project)
    scripts = {path.stem: path for path in sorted((project / "benchmarks").glob("*.py"))}
    known = sorted({*benchmarking.names(), *scripts})
    if arguments.benchmark == "list":
        print("\n".join(known))
        return 0
    if arguments.benchmark in benchmarking.names():
        return _measure(arguments)
    if arguments.benchmark in scripts:
        return _run_script(scripts[arguments.benchmark], arguments.options)
    raise ConfigError(unknown_name(arguments.benchmark, known, what="benchmark"))


def _measure(arguments) -> int:
    """Run a module of moat.benchmarking."""
    import argparse
    import importlib
    import json

    module = importlib.import_module(f"moat.benchmarking.{arguments.benchmark}")
    parser = argparse.ArgumentParser(prog=f"moat bench {arguments.benchmark}", description=module.__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to a file, too")
    parser.add_argument("--record", action="store_true", help="keep the rows in benchmarks/results/<hardware>.json")
    parser.add_argument("--note", metavar="TEXT", help="with --record: what else the machine was doing")
    module.add_arguments(parser)
    options = parser.parse_args(arguments.options)
    options.project = arguments.project
    if hasattr(options, "device"):
        options.device = arguments.until_end.enter_context(devices.lease(options.device))
    options.command = " ".join(["moat", "bench", arguments.benchmark, *_without_notes(arguments.options)])
    content = module.measure(options)
    if options.record:
        from moat.benchmarking import records

        print(f"moat bench: rows kept in {records.merge(Path(options.project), content['rows'])}", file=sys.stderr)
    if options.out:
        from moat.base.files import write_json

        write_json(options.out, content)
    print(json.dumps(content, indent=2) if options.json else "\n".join(table(content["rows"], module.COLUMNS)))
    return 0


def _without_notes(options: list[str]) -> list[str]:
    """What makes another run measure the same."""
    kept, options = [], iter(options)
    for option in options:
        if option in ("--note", "--out"):
            next(options, None)
        elif option not in ("--record", "--json"):
            kept.append(option)
    return kept


def _run_script(path: Path, options: list[str]) -> int:
    """Run a script of benchmarks/; these always print JSON."""
    import subprocess

    command = [sys.executable, str(path), *(option for option in options if option != "--json")]
    return subprocess.run(command, check=False).returncode


def table(rows: list[dict], columns: tuple[str, ...]) -> list[str]:
    """The rows' columns as aligned lines; a dash where a row has no value."""
    cells = [list(columns), *([_text(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _text(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
