"""How long tables, figures and the page take from finished evaluations, and how much memory, for the full paper grid.

    python benchmarks/reporting.py [--scale paper] [--examples 10000] [--settings 8] [--into DIR]

Writes the results that the studies need at the scale (records of runs, evaluations and checks, and the features that
t-SNE embeds), with synthetic numbers in the formats and sizes of real ones; then times `moat tabulate`,
`moat tabulate --cells`, `moat draw` and `moat report`, each in its own process, one after the other. Prints JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy

from moat.config import paths, studies_option
from moat.config.grid import Evaluation, Grid, Run, build_grid
from moat.config.project import Project
from moat.config.records import locate
from moat.provenance import environment, staleness

ROOT = Path(__file__).parents[1]
CLASSES, EPOCHS, CHECKS = 10, 100, 12
COMMANDS = {
    "tables": ["tabulate"],
    "cells, claims, metrics": ["tabulate", "--cells"],
    "figures": ["draw"],
    "page": ["report"],
}


def rows(settings: list[str], examples: int, random: np.random.Generator) -> pyarrow.Table:
    """The rows of an evaluation, one per (setting, example): each setting is stronger than the last."""
    count = len(settings) * examples
    labels = np.tile(random.integers(0, CLASSES, examples), len(settings))
    rates = np.repeat(np.linspace(0.9, 0.4, len(settings)), examples)
    correct = np.tile(random.random(examples), len(settings)) < rates
    codes = pyarrow.array(np.repeat(np.arange(len(settings), dtype=np.int32), examples))
    return pyarrow.table(
        {
            "setting": pyarrow.DictionaryArray.from_arrays(codes, settings).cast(pyarrow.string()),
            "index": np.tile(np.arange(examples, dtype=np.int64), len(settings)),
            "label": labels,
            "predicted": np.where(correct, labels, (labels + 1) % CLASSES),
            "correct": correct,
            "confidence": random.random(count, dtype=np.float32),
            "linf": np.full(count, 8 / 255, np.float32),
            "steps": np.full(count, 10, np.int64),
        }
    )


def make(project: Project, grid: Grid, root: Path, examples: int, settings: int) -> None:
    """Write everything that the grid needs.

    All evaluations of a suite are one file under many names: each is read, but from the system's cache.
    """
    random = np.random.default_rng(0)
    for run in grid.runs:
        _write(root, paths.run_dir(grid.scale, run) / "run.json", _record(project, run, grid.scale))
        history = "".join(f"{epoch},0.1,{2 / epoch},{1 - 0.5 / epoch},50000,30\n" for epoch in range(1, EPOCHS + 1))
        file = locate(root, paths.run_dir(grid.scale, run) / "history.csv")
        file.write_text("epoch,lr,loss,validation_accuracy,images,seconds\n" + history)
    for run in grid.checks:
        check = {"passed": True, "value": {"excess": 0.25}, "limit": {"excess": 0.3}, "message": "m" * 80}
        checks = [{"check": f"check-{number}", **check} for number in range(CHECKS)]
        content = {"passed": True, "failed": [], "worst_case_accuracy": 0.4, "checks": checks, "seconds": 60.0}
        _write(root, paths.checks(grid.scale, run), content)
    for probe in grid.probes:
        spec = project.probe(probe.name)
        if spec["probe"] == "features":  # what t-SNE takes its time for
            _features(locate(root, paths.probe(grid.scale, probe.run, probe.name)), spec["images"], random)
    first: dict[str, Path] = {}
    for each in grid.evaluations:
        names = project.measured(each.suite)
        names += [f"more-{n}" for n in range(settings - len(names))]
        path = paths.evaluation(grid.scale, each.run, each.suite)
        _write(root, path.with_suffix(".json"), _evaluation(project, each, grid.scale, examples))
        if each.suite in first:
            os.link(first[each.suite], locate(root, path))
        else:
            first[each.suite] = locate(root, path)
            pyarrow.parquet.write_table(rows(names, examples, random), first[each.suite], compression="zstd")


def _features(path: Path, images: int, random: np.random.Generator) -> None:
    """Ten clouds of penultimate features of a ResNet-18, clean and moved by an attack."""
    label = random.integers(0, CLASSES, images)
    clean = random.normal(0, 3, (CLASSES, 512))[label] + random.normal(0, 1, (images, 512))
    arrays = {"clean": clean, "attacked": clean + random.normal(0, 2, clean.shape)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays |= {"label": label, "clean_predicted": label, "attacked_predicted": random.permutation(label)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors.numpy.save(arrays))
    path.with_suffix(".json").write_text(json.dumps({"n": images, "seconds": 60.0, "classes": list("abcdefghij")}))


def _evaluation(project: Project, each: Evaluation, scale: str, examples: int) -> dict:
    settings = project.attack_settings(each.suite, scale)
    attacks = {setting["attack"] for setting in settings.values()}
    kind = project.method(each.run.method)["class"]
    run = {"method": each.run.method, "class": kind, "arch": each.run.arch, "model_sha256": "0" * 64}
    made_by = staleness.hash_parts(staleness.EVALUATION_PARTS, method=kind, arch=each.run.arch, attacks=sorted(attacks))
    return {"run": run, "n": examples, "seconds": 300.0, "settings": settings, "sources": made_by}


def _record(project: Project, run: Run, scale: str) -> dict:
    kind = project.method(run.method)["class"]
    return {
        **{
            "class": kind,
            "dataset": run.dataset,
            "arch": run.arch,
            "method": run.method,
            "seed": run.seed,
            "scale": scale,
        },
        **{"recipe": {"version": 1, "epochs": EPOCHS}, "wall_seconds": 3600.0, "gpu_seconds": 3600.0},
        **{"images_per_second": 1e4, "parameters": 11173962, "macs_per_image": 555_400_000, "peak_memory_bytes": 2**32},
        **{"model_sha256": "0" * 64, "git_commit": "0" * 40, **environment.environment()},
        "sources": staleness.hash_parts(staleness.TRAINING_PARTS, method=kind, arch=run.arch),
    }


def _write(root: Path, path: Path, content: dict) -> None:
    file = locate(root, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def timed(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (MiB) of one command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "moat", *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"moat {' '.join(command)}: exit {process.returncode}")
    seconds = {"wall_seconds": time.perf_counter() - start, "cpu_seconds": used.ru_utime + used.ru_stime}
    return {**{name: round(value, 2) for name, value in seconds.items()}, "peak_mib": round(used.ru_maxrss / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--settings", type=int, default=8, help="at least so many per evaluation")
    parser.add_argument("--into", type=Path, help="keeps the results; those that are there are used")
    arguments = parser.parse_args()
    project = Project(ROOT)
    grid = build_grid(project, arguments.scale, studies_option.studies(project, None))
    with tempfile.TemporaryDirectory() as temporary:
        root = (arguments.into or Path(temporary)) / "results"
        if not root.exists():
            make(project, grid, root, arguments.examples, arguments.settings)
        place = ["--scale", arguments.scale, "--results", str(root)]
        found = [{"what": name, **timed([*command, *place])} for name, command in COMMANDS.items()]
        page = locate(root, paths.report(arguments.scale)).stat().st_size
    size = {"evaluations": len(grid.evaluations), "runs": len(grid.runs), "tables": len(grid.tables)}
    size |= {"figures": len(grid.figures), "cells": sum(len(table.cells) for table in grid.tables)}
    print(json.dumps({"rows": found, **size, "page_bytes": page, **environment.environment()}, indent=2))


if __name__ == "__main__":
    main()
