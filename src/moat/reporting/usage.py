"""What it took: jobs asked for and done, time by rule, GPU-hours, hardware and versions."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moat.config import paths
from moat.config.grid import Grid
from moat.config.grid_types import Probe, unique
from moat.reporting.records import describe_hardware, duration
from moat.reporting.results import Results

# MiB. A command that computes has imported torch or pandas. What is smaller was Snakemake's end of a warm start, whose
# job ran where Snakemake did not look.
SMALLEST_JOB = 64


def summarise(grid: Grid, results: Results) -> dict[str, Any]:
    """``rules``: one record per rule; ``gpu_hours``; ``hardware`` and ``versions``: (text, results that say so)."""
    contents = _contents(grid, results)
    found = [content for part in contents.values() for content in part]
    return {
        "rules": rules(grid, results, contents),
        "gpu_hours": sum(map(_gpu_seconds, found)) / 3600,
        "hardware": Counter(map(_hardware, found)).most_common(),
        "versions": _versions(found),
    }


def rules(grid: Grid, results: Results, contents: Mapping[str, list[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What the workflow asks for, in its order, and how much of it is there.

    ``recorded`` is what the results say of themselves, and so is ``memory`` where they do (a training on a GPU: the
    GPU's); all else comes from Snakemake's benchmark files, which stay on the machine that ran the jobs. These know
    neither CPU time nor memory of jobs that were started warm.
    """
    records = []
    for name, makes, files in _asked(grid):
        said = contents.get(name, [])
        seconds = [content.get("wall_seconds", content.get("seconds")) or 0 for content in said]
        peaks = [content["peak_memory_bytes"] / 2**20 for content in said if content.get("peak_memory_bytes")]
        records.append(
            {
                "name": name,
                "makes": makes,
                "asked": len(files),
                "done": sum(results.file(file).exists() for file in files),
                "recorded": duration(sum(seconds)) if seconds else None,
                "recorded_seconds": sum(seconds),
                **_measured(benchmarks(results, name), peaks),
            }
        )
    return records


def benchmarks(results: Results, rule: str) -> list[dict[str, float | None]]:
    """The rows of a rule's benchmark files: ``seconds``, ``cpu`` (s) and ``memory`` (peak, MiB), None if unknown."""
    folder = results.file(paths.results(results.scale)) / "benchmarks" / rule
    return [row for path in sorted(folder.rglob("*.tsv")) for row in _rows(path)]


def _asked(grid: Grid) -> list[tuple[str, str, list[Path]]]:
    """(rule, what it makes, its files) for every rule that is asked for something."""
    scale = grid.scale
    asked = [
        ("prepare", "data sets as tensors", [paths.prepared(scale, name) for name in grid.datasets]),
        ("train", "trained models", [paths.run_dir(scale, run) / "run.json" for run in grid.runs]),
        ("evaluate", "evaluations", [paths.evaluation(scale, each.run, each.suite) for each in grid.evaluations]),
        ("verify", "checks", [paths.checks(scale, run) for run in grid.checks]),
        ("probe", "looks into models", [paths.probe(scale, each.run, each.name) for each in probes(grid)]),
        ("tabulate", "tables", [Path(f"{paths.table(scale, t.study, t.name)}.csv") for t in grid.tables]),
        ("draw", "figures", [Path(f"{paths.figure(scale, f.study, f.name)}.png") for f in grid.figures]),
    ]
    return [(rule, makes, files) for rule, makes, files in asked if files]


def probes(grid: Grid) -> tuple[Probe, ...]:
    """What figures ask of the models themselves."""
    return unique(probe for figure in grid.figures for probe in figure.probes)


def _contents(grid: Grid, results: Results) -> dict[str, list[Mapping[str, Any]]]:
    """rule -> the JSON records that its jobs left."""
    found = {
        "train": map(results.run, grid.runs),
        "evaluate": (results.evaluation(each.run, each.suite) for each in grid.evaluations),
        "verify": map(results.checks, grid.checks),
        "probe": (results.probe_record(each.run, each.name) for each in probes(grid)),
    }
    return {rule: [content for content in contents if content is not None] for rule, contents in found.items()}


def _measured(rows: list[dict[str, float | None]], peaks: list[float]) -> dict[str, Any]:
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    cpu = [row["cpu"] for row in rows if row["cpu"] is not None]
    memory = peaks or [row["memory"] for row in rows if row["memory"] is not None]
    return {
        "benchmarks": len(rows),
        "measured": duration(sum(seconds)) if seconds else None,
        "measured_seconds": sum(seconds),
        "longest": duration(max(seconds)) if seconds else None,
        "longest_seconds": max(seconds, default=0),
        "cpu": duration(sum(cpu)) if cpu else None,
        "memory": f"{max(memory):,.0f} MiB" if memory else None,
        "memory_mib": max(memory, default=0),
    }


def _rows(path: Path) -> list[dict[str, float | None]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [_row(row) for row in csv.DictReader(lines, delimiter="\t")]


def _row(row: Mapping[str, str | None]) -> dict[str, float | None]:
    seconds, cpu, memory = (_number(row, name) for name in ("s", "cpu_time", "max_rss"))
    if memory is not None and memory < SMALLEST_JOB:
        cpu = memory = None
    return {"seconds": seconds, "cpu": cpu, "memory": memory}


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


def _versions(contents: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, int]]]]:
    """(package, its versions with the number of results made with each), by name."""
    seen: dict[str, Counter[str]] = {}
    for content in contents:
        for package, version in (content.get("versions") or {}).items():
            seen.setdefault(package, Counter())[str(version)] += 1
    return [(package, versions.most_common()) for package, versions in sorted(seen.items())]


def _hardware(content: Mapping[str, Any]) -> str:
    return describe_hardware(content.get("hardware") or {}, content.get("device"))
