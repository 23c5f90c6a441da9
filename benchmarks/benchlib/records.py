"""Measured rows beside their targets (``benchmarks/targets.yaml``), and the file that keeps a machine's rows.

A row says what was compared, ``ratio`` (how many times faster), its range, ``floor``, ``aim`` and the command.
"""

import argparse
import functools
import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from moat.base.errors import ConfigError
from moat.base.files import read_json, write_json
from moat.provenance import environment

TARGETS = Path("benchmarks") / "targets.yaml"
RESULTS = Path("benchmarks") / "results"
COLUMNS = ("id", "case", "what", "ratio", "low", "high", "n", "floor", "aim", "exact")


@functools.cache
def targets(root: Path) -> dict[int, dict[str, Any]]:
    """Number of a row -> ``what``, ``against``, ``cases`` (case -> [floor, aim]), ``not_measured``.

    Raises:
        ConfigError: the file is not there.
    """
    path = root / TARGETS
    if not path.exists():
        raise ConfigError(f"{path}: no such file; --project names a checkout of the project")
    return yaml.safe_load(path.read_text())


def row(root: Path, number: int, case: str, measured: Mapping[str, float], **facts) -> dict:
    """A row of the table.

    Args:
        root: of the project, whose targets the row is measured by.
        case: one that has no target has neither floor nor aim.
        measured: from :func:`benchlib.timing.ratio`; empty where it could not be measured, see ``facts``.
        facts: further keys: ``exact``, ``batch_size``, ``not_measured``, …
    """
    target = targets(root)[number]
    floor, aim = target["cases"].get(case, (None, None))
    limits = {"floor": floor, "aim": aim}
    about = {"id": number, "case": case, "what": target["what"], "against": target["against"]}
    return {**about, **(measured or {"ratio": None}), **limits, **facts}


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """The conditions of a run, kept with each of its rows: another run may replace only some rows of a file."""
    return {
        "command": arguments.command,
        "threads": getattr(arguments, "threads", 1),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {name: _version(name) for name in ("torch", "numpy")},
        "commit": environment.git_commit(arguments.project),
        **({"note": arguments.note} if arguments.note else {}),
    }


def merge(root: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Put rows into ``benchmarks/results/<hardware>.json``; those of the same number and case are replaced."""
    machine = environment.environment()
    path = root / RESULTS / f"{hardware_name(machine['hardware'])}.json"
    content = read_json(path) if path.exists() else {}
    kept = {_key(each): each for each in content.get("rows", [])} | {_key(each): dict(each) for each in rows}
    ordered = sorted(kept.values(), key=lambda each: _key(each)[0])
    write_json(path, {**content, **machine, "rows": ordered})
    return path


def hardware_name(hardware: Mapping[str, Any]) -> str:
    """E.g. "amd-epyc-2-cores"; of a GPU, its name."""
    name = hardware["gpus"][0] if hardware.get("gpus") else f"{hardware['cpu']} {hardware['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _key(each: Mapping[str, Any]) -> tuple:
    return each.get("id", 99), each.get("case", ""), each.get("curve", "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
