"""What it took: jobs asked for and done, time by rule, GPU-hours, hardware and versions."""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.config import paths
from moat.config.grid import Grid
from moat.reporting import formatting
from moat.reporting.results import Results

# Bytes. A command that computes has imported torch or pandas. Anything smaller was the client of a warm start: the job
# itself ran where Snakemake did not look.
SMALLEST_JOB = 64 * 2**20


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

    ``recorded`` is the time that the results' own records state; so is ``memory`` where they state it (of the GPU for
    a training on one). All else comes from Snakemake's benchmark files, which stay on the machine that ran the jobs
    and lack CPU time and memory of jobs that were started warm.
    """
    scale = grid.scale
    asked = [
        ("prepare", "data sets as tensors", [paths.prepared(scale, name) for name in grid.datasets]),
        ("train", "trained models", [paths.run_dir(scale, run) / "run.json" for run in grid.runs]),
        ("evaluate", "evaluations", [paths.evaluation(scale, each.run, each.suite) for each in grid.evaluations]),
        ("verify", "checks", [paths.checks(scale, run) for run in grid.checks]),
        ("probe", "model internals for figures", [paths.probe(scale, each.run, each.name) for each in grid.probes]),
        ("tabulate", "tables", [Path(f"{paths.table(scale, t.study, t.name)}.csv") for t in grid.tables]),
        ("draw", "figures", [Path(f"{paths.figure(scale, f.study, f.name)}.png") for f in grid.figures]),
    ]
    records = []
    for name, makes, files in asked:
        if not files:
            continue
        said = contents.get(name, [])
        recorded = [content.get("wall_seconds", content.get("seconds")) or 0 for content in said]
        jobs = _benchmarks(results, name)
        seconds, cpu, memory = ([job[key] for job in jobs if job[key] is not None] for key in ("s", "cpu", "memory"))
        peak = max([each["peak_memory_bytes"] for each in said if each.get("peak_memory_bytes")] or memory, default=0)
        records.append(
            {
                "name": name,
                "makes": makes,
                "asked": len(files),
                "done": sum(results.file(file).exists() for file in files),
                "recorded": formatting.duration(sum(recorded)) if recorded else None,
                "recorded_seconds": sum(recorded),
                "benchmarks": len(jobs),
                "measured": formatting.duration(sum(seconds)) if seconds else None,
                "measured_seconds": sum(seconds),
                "longest": formatting.duration(max(seconds)) if seconds else None,
                "longest_seconds": max(seconds, default=0),
                "cpu": formatting.duration(sum(cpu)) if cpu else None,
                "memory": formatting.memory(peak or None),
                "memory_bytes": peak,
            }
        )
    return records


def _benchmarks(results: Results, rule: str) -> list[dict[str, float | None]]:
    """Of each benchmark file of a rule ``s`` and ``cpu`` (seconds) and ``memory`` (peak, bytes); None if unknown."""
    folder = results.file(paths.results(results.scale)) / "benchmarks" / rule
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                seconds, cpu, memory = (_number(row, name) for name in ("s", "cpu_time", "max_rss"))
                memory = memory and memory * 2**20
                if memory is not None and memory < SMALLEST_JOB:
                    cpu = memory = None
                rows.append({"s": seconds, "cpu": cpu, "memory": memory})
    return rows


def _number(row: Mapping[str, str | None], name: str) -> float | None:
    """Snakemake writes ``-`` or ``NA`` where a job was over before it was looked at."""
    try:
        return float(row.get(name) or "")
    except ValueError:
        return None


def _gpu_seconds(content: Mapping[str, Any]) -> float:
    """As recorded; evaluations and checks on a machine with a GPU use it from the first to the last second."""
    if "gpu_seconds" in content:
        return content["gpu_seconds"] or 0.0
    return (content.get("seconds") or 0.0) if (content.get("hardware") or {}).get("gpus") else 0.0
