"""``tables/robustbench.json``: an entry in RobustBench's format for every run that AutoAttack was run on."""

from typing import Any

from moat.base.files import read_json
from moat.config import paths
from moat.config.grid import Grid, Run
from moat.evaluation.robustbench import entry
from moat.reporting.results import Results


def entries(grid: Grid, results: Results) -> dict[str, Any]:
    """run -> the entry of its evaluation with AutoAttack; of several, of the one with the most settings."""
    suites: dict[Run, list[str]] = {}
    for asked in grid.evaluations:
        suites.setdefault(asked.run, []).append(asked.suite)
    found: dict[str, Any] = {}
    for run, names in sorted(suites.items(), key=lambda item: paths.run_name(item[0])):
        files = [results.file(paths.evaluation(results.scale, run, name)).with_suffix(".json") for name in names]
        contents = [
            content for content in (read_json(path) for path in files if path.exists()) if _has_autoattack(content)
        ]
        if contents:
            fullest = max(contents, key=lambda each: len(each["settings"]))
            found[paths.run_name(run)] = entry(fullest, results.project.method(run.method))
    return found


def _has_autoattack(content: dict[str, Any]) -> bool:
    settings = content.get("settings", {})
    attacks = {settings[name].get("attack") for name in content.get("accuracy", ()) if name in settings}
    return {"autoattack", "none"} <= attacks
