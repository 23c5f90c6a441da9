"""The command line of a benchmark: its options, the GPU it leases, how its rows are printed and kept."""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchlib import records, timing
from moat.base.errors import MoatError
from moat.base.files import write_json
from moat.machine import devices

ROOT = Path(__file__).parents[2]


def main(benchmark: ModuleType, argv: Sequence[str] | None = None) -> int:
    """Measure, print the rows and return the exit code (those of the ``moat`` command).

    Args:
        benchmark: a script with ``add_arguments(parser)``, ``measure(arguments)``, which returns rows (mappings), and
            ``COLUMNS``, the keys of a row that are printed. A GPU is leased if it has an option ``--device``.
        argv: default: those of the process.
    """
    name = Path(benchmark.__file__).stem
    options = list(sys.argv[1:] if argv is None else argv)
    arguments = parser_of(benchmark).parse_args(options)
    arguments.command = " ".join(["python", f"benchmarks/{name}.py", *_what_is_measured(options)])
    try:
        content = _measured(benchmark, name, arguments)
        if arguments.record:
            path = records.merge(arguments.project, content["rows"])
            print(f"{name}: rows kept in {path}", file=sys.stderr)
        if arguments.out:
            write_json(arguments.out, content)
    except MoatError as error:
        print(f"benchmarks/{name}.py: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(content, indent=2) if arguments.json else "\n".join(table(content["rows"], benchmark.COLUMNS)))
    return 0


def parser_of(benchmark: ModuleType) -> argparse.ArgumentParser:
    """A benchmark's own options and those of all benchmarks."""
    kind = argparse.RawDescriptionHelpFormatter
    program = f"benchmarks/{Path(benchmark.__file__).name}"
    parser = argparse.ArgumentParser(prog=program, description=benchmark.__doc__, formatter_class=kind)
    parser.add_argument("--project", type=Path, default=ROOT, metavar="DIR", help="holds config/ (default: this one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to a file, too")
    parser.add_argument("--record", action="store_true", help="keep the rows in benchmarks/results/<hardware>.json")
    parser.add_argument("--note", metavar="TEXT", help="with --record: what else the machine was doing")
    benchmark.add_arguments(parser)
    return parser


def _measured(benchmark: ModuleType, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    arguments.torch_device = torch.device("cpu")
    with contextlib.ExitStack() as until_end:
        if hasattr(arguments, "device"):
            # The lease sets CUDA_VISIBLE_DEVICES, which CUDA reads at its first use: importing torch is no use.
            arguments.device = until_end.enter_context(devices.lease(arguments.device))
            arguments.torch_device = devices.select(arguments.device, arguments.threads)
        rows = benchmark.measure(arguments)
        shared = records.conditions(arguments)
        machine = timing.machine(arguments.torch_device)
        return {"benchmark": name, **machine, "rows": [{**row, **shared} for row in rows]}


def _what_is_measured(options: Sequence[str]) -> list[str]:
    """The options without those that say where to read, write or print: what another run repeats."""
    kept, rest = [], iter(options)
    for option in rest:
        if option in ("--note", "--out", "--project"):
            next(rest, None)
        elif option not in ("--record", "--json"):
            kept.append(option)
    return kept


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The rows' columns as aligned lines; a dash where a row has no value."""
    cells = [list(columns), *([_text(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
