"""What it took: jobs asked for and done, time by rule, GPU-hours, hardware and versions."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.config import paths
from moat.config.grid import Grid
from moat.config.status import Status, Statuses
from moat.reporting import formatting
from moat.reporting.results import Results


def summarise(grid: Grid, results: Results, statuses: Statuses) -> dict[str, Any]:
    """``rules``: one record per rule; ``gpu_hours``; ``hardware`` and ``versions``: (text, number of results)."""
    contents: dict[str, list[Mapping[str, Any]]] = {
        "train": [results.run(run) for run in grid.runs],
        "evaluate": [results.evaluation(each.run, each.suite) for each in grid.evaluations],
        "verify": [results.checks(run) for run in grid.checks],
        "probe": [results.probe_record(each.run, each.name) for each in grid.probes],
    }
    contents = {rule: [content for content in each if content is not None] for rule, each in contents.items()}
    found = [content for part in contents.values() for content in part]
    versions: dict[str, Counter[str]] = {}
    for content in found:
        for package, version in (content.get("versions") or {}).items():
            versions.setdefault(package, Counter())[str(version)] += 1
    return {
        "rules": _rules(grid, results, statuses, contents),
        "gpu_hours": sum(map(_gpu_seconds, found)) / 3600,
        "hardware": Counter(map(formatting.hardware, found)).most_common(),
        "versions": [(package, counts.most_common()) for package, counts in sorted(versions.items())],
    }


def _rules(
    grid: Grid, results: Results, statuses: Statuses, contents: Mapping[str, list[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """What the workflow asks for, in its order, and how much of it is done, stale or missing.

    Times and memory are those that the results' own records state; nothing states them of tables and figures.
    """
    evidence, shown = results.is_evidence, statuses.shown
    prepared = [results.file(paths.prepared(grid.scale, name)) for name in grid.datasets]
    asked = [
        # Evidence keeps no data, and no record of what its tables and figures were made of.
        ("prepare", "data sets as tensors", [_there(path) for path in prepared if not evidence]),
        ("train", "trained models", [statuses.of_result("run", run) for run in grid.runs]),
        ("evaluate", "evaluations", [statuses.of_result("evaluation", e.run, e.suite) for e in grid.evaluations]),
        ("verify", "checks", [statuses.of_result("check", run) for run in grid.checks]),
        ("probe", "model internals", [statuses.of_result("probe", each.run, each.name) for each in grid.probes]),
        ("tabulate", "tables", [statuses.of_shown(each) for each in shown if each.kind == "table" and not evidence]),
        ("draw", "figures", [statuses.of_shown(each) for each in shown if each.kind == "figure" and not evidence]),
    ]
    records = []
    for name, makes, found in asked:
        if not found:
            continue
        said = [{**each, "seconds": each.get("wall_seconds", each.get("seconds"))} for each in contents.get(name, [])]
        seconds, cpu, memory = (
            [content[key] for content in said if content.get(key)]
            for key in ("seconds", "cpu_seconds", "peak_host_memory_bytes")
        )
        records.append(
            {
                "name": name,
                "makes": makes,
                "asked": len(found),
                **{status: sum(each.status == status for each in found) for status in ("done", "stale", "missing")},
                "wall": formatting.duration(sum(seconds)) if seconds else None,
                "wall_seconds": sum(seconds),
                "longest": formatting.duration(max(seconds)) if seconds else None,
                "longest_seconds": max(seconds, default=0),
                "cpu": formatting.duration(sum(cpu)) if cpu else None,
                "cpu_seconds": sum(cpu),
                "memory": formatting.memory(max(memory, default=None)),
                "memory_bytes": max(memory, default=0),
            }
        )
    return records


def _there(path: Path) -> Status:
    return Status("done", [], False) if path.exists() else Status("missing", [], True)


def _gpu_seconds(content: Mapping[str, Any]) -> float:
    """As recorded; evaluations and checks on a machine with a GPU use it from the first to the last second."""
    if "gpu_seconds" in content:
        return content["gpu_seconds"] or 0.0
    return (content.get("seconds") or 0.0) if (content.get("hardware") or {}).get("gpus") else 0.0
