"""What ran, what was checked and what did not run: the lists behind the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from moat.config import paths
from moat.config.cell_spec import CORRECT
from moat.config.grid import Cell, Grid, Run
from moat.reporting import formatting, provenance
from moat.reporting.layout import is_about_scale
from moat.reporting.results import Results
from moat.reporting.tables import not_run_reason


def runs(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """One record per finished run, from its run.json; what a run.json lacks is None."""
    return [
        {**_run(run, content), "stale": results.stale_run(run)}
        for run in grid.runs
        if (content := results.run(run)) is not None
    ]


def deviations(runs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What the records of :func:`runs` say was decided: the sentences that all have, and those of some runs only.

    Returns:
        topic -> sentence of what every run recorded; records of ``deviations`` (the others, never empty) and ``runs``
        (their numbers in the list) and ``names`` (their methods and data sets), in the order of the list.
    """
    recorded = [run["deviations"] for run in runs if run["deviations"]]
    shared = dict(recorded[0]) if recorded else {}
    for each in recorded:
        shared = {topic: said for topic, said in shared.items() if each.get(topic) == said}
    groups: dict[tuple, list[int]] = {}
    for number, run in enumerate(runs):
        if own := tuple(item for item in run["deviations"].items() if item[0] not in shared):
            groups.setdefault(own, []).append(number)
    return shared, [
        {
            "deviations": dict(own),
            "runs": numbers,
            "names": list(
                dict.fromkeys(f"{runs[number]['method']} on {runs[number]['dataset']}" for number in numbers)
            ),
        }
        for own, numbers in groups.items()
    ]


def _run(run: Run, content: Mapping[str, Any]) -> dict[str, Any]:
    recipe = content.get("recipe") or {}
    return {
        **_names(run),
        "epochs": content.get("epochs") or recipe.get("epochs"),
        "recipe_version": recipe.get("version"),
        "selected_by": (recipe.get("validation") or {}).get("setting"),
        "best_epoch": content.get("best_epoch"),
        "deviations": dict(content.get("deviations") or {}),
        "wall": formatting.duration(content.get("wall_seconds")),
        "wall_seconds": content.get("wall_seconds"),
        "images_per_second": content.get("images_per_second"),
        "parameters": content.get("parameters"),
        "macs": content.get("macs_per_image"),
        "memory": formatting.memory(content.get("peak_memory_bytes")),
        "hardware": formatting.hardware(content),
        "versions": dict(content.get("versions") or {}),
        "git_commit": content.get("git_commit"),
        "model_sha256": content.get("model_sha256"),
        "data_sha256": (content.get("data") or {}).get("sha256"),
    }


def evaluations(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """One record per finished evaluation."""
    records = []
    for run, suite in ((each.run, each.suite) for each in grid.evaluations):
        if results.has_evaluation(run, suite):
            content = results.evaluation(run, suite) or {}
            records.append(
                {
                    **_names(run),
                    "suite": suite,
                    "settings": list(content.get("settings") or []),
                    "n": content.get("n"),
                    "seconds": content.get("seconds"),
                    "wall": formatting.duration(content.get("seconds")),
                    "address": provenance.address(str(paths.evaluation(results.scale, run, suite)), results.scale),
                    "stale": results.stale_evaluation(run, suite),
                }
            )
    return records


def checks(grid: Grid, results: Results) -> tuple[list[str], list[dict[str, Any]]]:
    """(names of all checks, one record per run that a table or figure shows and that is trained or checked)."""
    names: dict[str, None] = {}
    records = []
    for run in grid.checks:
        content = results.checks(run)
        if content is None and results.run(run) is None:
            continue
        found = {check["check"]: _check(check) for check in (content or {}).get("checks", [])}
        names.update(dict.fromkeys(found))
        records.append(
            {
                **_names(run),
                "checked": content is not None,
                "passed": bool(content and content["passed"]),
                "failed": list(content["failed"]) if content else [],
                "worst_case_accuracy": (content or {}).get("worst_case_accuracy"),
                "checks": found,
                "stale": results.stale_checks(run),
            }
        )
    return list(names), records


def _check(check: Mapping[str, Any]) -> dict[str, str]:
    """Its state is one of :data:`moat.evaluation.checks.registry.State`."""
    return {
        "state": check.get("state") or ("passed" if check["passed"] else "failed"),
        "value": formatting.plain(check.get("value", check.get("values"))),
        "limit": formatting.plain(check.get("limit")),
        "message": check.get("message") or "",
    }


def not_run(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """What has no measurement: one record per reason, with its cells by table or figure.

    Among them the alternative protocols whose nets the scale does not train. What the scale leaves out comes last.
    """

    def under(cell: Cell) -> str:
        return "" if cell.protocol == CORRECT else f" (under {cell.protocol})"

    shown = [
        (f"{table.study}: {table.title}", f"{cell.row} × {cell.column}{under(each)}", each)
        for table in grid.tables
        for cell in table.cells
        for each in (cell, *(other for other in cell.alternatives if other.not_run))
    ]
    shown += [
        (f"{figure.study}: {figure.title}", line.label, line.cell) for figure in grid.figures for line in figure.lines
    ]
    reasons: dict[str, dict[str, list[str]]] = {}
    for where, label, cell in shown:
        if (reason := not_run_reason(cell, results)) is not None:
            reasons.setdefault(reason, {}).setdefault(where, []).append(label)
    return [
        {
            "reason": reason,
            "count": sum(map(len, reasons[reason].values())),
            "places": reasons[reason],
            "about_scale": is_about_scale(reason),
        }
        for reason in sorted(reasons, key=is_about_scale)
    ]


def _names(run: Run) -> dict[str, Any]:
    method = run.method if run.weights == "best" else f"{run.method} (last epoch)"
    names = {"dataset": run.dataset, "arch": run.arch, "method": method, "seed": run.seed}
    return {**names, "name": paths.run_name(run)}
