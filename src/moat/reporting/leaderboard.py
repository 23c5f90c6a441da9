"""RobustBench-shaped entries of all runs that AutoAttack was run on: tables/robustbench.json, run -> entry."""

from collections.abc import Iterable
from typing import Any

from moat.base.files import read_json
from moat.config import paths
from moat.config.grid import Grid
from moat.evaluation.robustbench import entry
from moat.reporting.results import Results


def entries(grid: Grid, results: Results) -> dict[str, Any]:
    """Of every run of the grid the entry of its evaluation with AutoAttack, of several the one with most settings."""
    found: dict[str, Any] = {}
    for run, evaluations in _by_run(grid, results):
        if evaluations:
            method = results.project.method(run.method)
            found[paths.run_name(run)] = entry(max(evaluations, key=lambda each: len(each["settings"])), method)
    return found


def _by_run(grid: Grid, results: Results) -> Iterable[tuple[Any, list[dict[str, Any]]]]:
    suites: dict[Any, list[str]] = {}
    for asked in grid.evaluations:
        suites.setdefault(asked.run, []).append(asked.suite)
    for run, names in sorted(suites.items(), key=lambda item: paths.run_name(item[0])):
        files = [results.file(paths.evaluation(results.scale, run, name)).with_suffix(".json") for name in names]
        read = [read_json(path) for path in files if path.exists()]
        yield run, [content for content in read if _has_autoattack(content)]


def _has_autoattack(content: dict[str, Any]) -> bool:
    settings = content.get("settings", {})
    attacks = {settings[name].get("attack") for name in content.get("accuracy", ()) if name in settings}
    return {"autoattack", "none"} <= attacks
