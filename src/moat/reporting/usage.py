"""What it took: jobs asked for and done, time by rule, GPU-hours, hardware and versions."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.config import paths
from moat.config.grid import Grid
from moat.reporting import formatting
from moat.reporting.results import Results


def summarise(grid: Grid, results: Results) -> dict[str, Any]:
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
        "rules": _rules(grid, results, contents),
        "gpu_hours": sum(map(_gpu_seconds, found)) / 3600,
        "hardware": Counter(map(formatting.hardware, found)).most_common(),
        "versions": [(package, counts.most_common()) for package, counts in sorted(versions.items())],
    }


def _rules(grid: Grid, results: Results, contents: Mapping[str, list[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What the workflow asks for, in its order, and how much of it is there.

    Times and memory are those that the results' own records state; nothing states them of tables and figures.
    """
    scale = grid.scale
    asked = [
        ("prepare", "data sets as tensors", [paths.prepared(scale, name) for name in grid.datasets]),
        ("train", "trained models", [paths.run_dir(scale, run) / "run.json" for run in grid.runs]),
        ("evaluate", "evaluations", [paths.evaluation(scale, each.run, each.suite) for each in grid.evaluations]),
        ("verify", "checks", [paths.checks(scale, run) for run in grid.checks]),
        ("probe", "model internals", [paths.probe(scale, each.run, each.name) for each in grid.probes]),
        ("tabulate", "tables", [Path(f"{paths.table(scale, t.study, t.name)}.csv") for t in grid.tables]),
        ("draw", "figures", [Path(f"{paths.figure(scale, f.study, f.name)}.png") for f in grid.figures]),
    ]
    records = []
    for name, makes, files in asked:
        if not files:
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
                "asked": len(files),
                "done": sum(results.file(file).exists() for file in files),
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


def _gpu_seconds(content: Mapping[str, Any]) -> float:
    """As recorded; evaluations and checks on a machine with a GPU use it from the first to the last second."""
    if "gpu_seconds" in content:
        return content["gpu_seconds"] or 0.0
    return (content.get("seconds") or 0.0) if (content.get("hardware") or {}).get("gpus") else 0.0
