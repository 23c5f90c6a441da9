"""What ran, what it was checked for, and what did not run: the plain lists behind the page."""

from collections.abc import Iterable, Mapping
from typing import Any

from moat.config import paths
from moat.config.grid import Evaluation, Grid, Run
from moat.reporting.provenance import address
from moat.reporting.results import Results
from moat.reporting.tables import not_run_reason

# An evaluation or checks of a stale run are stale, too, whatever made them.
STALE_RUN = "its run"


def runs(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """One record per finished run, from its run.json; what a run.json lacks is None."""
    return [
        {**_run(run, content), "stale": results.stale_run(run)}
        for run in grid.runs
        if (content := results.run(run)) is not None
    ]


def _run(run: Run, content: Mapping[str, Any]) -> dict[str, Any]:
    recipe, memory = content.get("recipe") or {}, content.get("peak_memory_bytes")
    return {
        **_names(run),
        "epochs": content.get("epochs") or recipe.get("epochs"),
        "recipe_version": recipe.get("version"),
        "wall": duration(content.get("wall_seconds")),
        "wall_seconds": content.get("wall_seconds"),
        "images_per_second": content.get("images_per_second"),
        "parameters": content.get("parameters"),
        "macs": content.get("macs_per_image"),
        "memory": None if memory is None else f"{memory / 2**20:,.0f} MiB",
        "hardware": describe_hardware(content.get("hardware") or {}, content.get("device")),
        "versions": dict(content.get("versions") or {}),
        "git_commit": content.get("git_commit"),
        "model_sha256": content.get("model_sha256"),
        "data_sha256": (content.get("data") or {}).get("sha256"),
    }


def evaluations(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """One record per finished evaluation."""
    return [_evaluation(item, results) for item in grid.evaluations if results.has_evaluation(item.run, item.suite)]


def _evaluation(item: Evaluation, results: Results) -> dict[str, Any]:
    content = results.evaluation(item.run, item.suite) or {}
    return {
        **_names(item.run),
        "suite": item.suite,
        "settings": list(content.get("settings") or []),
        "n": content.get("n"),
        "seconds": content.get("seconds"),
        "wall": duration(content.get("seconds")),
        "address": address(str(paths.evaluation(results.scale, item.run, item.suite)), results.scale),
        "stale": stale(item.run, results.stale_evaluation(item.run, item.suite), results),
    }


def stale(run: Run, parts: list[str], results: Results) -> list[str]:
    """What of a run's evaluation or checks is stale: ``parts`` of the package, and :data:`STALE_RUN`."""
    return [*parts, STALE_RUN] if results.stale_run(run) else parts


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
                "stale": stale(run, results.stale_checks(run), results) if content else [],
            }
        )
    return list(names), records


def _check(check: Mapping[str, Any]) -> dict[str, Any]:
    value = check.get("value", check.get("values"))
    return {
        "passed": bool(check["passed"]),
        "value": show(value),
        "limit": show(check.get("limit")),
        "message": check.get("message") or "",
    }


def not_run(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """What has no measurement: one record per reason, with its cells by table or figure."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for where, label, cell in _shown(grid):
        reason = not_run_reason(cell, results)
        if reason is not None:
            reasons.setdefault(reason, {}).setdefault(where, []).append(label)
    return [
        {"reason": reason, "count": sum(map(len, places.values())), "places": places}
        for reason, places in reasons.items()
    ]


def _shown(grid: Grid) -> Iterable[tuple[str, str, Any]]:
    for table in grid.tables:
        yield from ((f"{table.study}: {table.title}", f"{cell.row} × {cell.column}", cell) for cell in table.cells)
    for figure in grid.figures:
        yield from ((f"{figure.study}: {figure.title}", line.label, line.cell) for line in figure.lines)


def _names(run: Run) -> dict[str, Any]:
    names = {"dataset": run.dataset, "arch": run.arch, "method": run.method, "seed": run.seed}
    return {**names, "name": paths.run_name(run)}


# -- numbers for people --------------------------------------------------------
def duration(seconds: float | None) -> str | None:
    """``42 s``, ``3 min 5 s`` or ``2 h 7 min``."""
    if seconds is None:
        return None
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def quantity(value: float | None) -> str:
    """``11.17 M``: four significant digits with a factor of a thousand."""
    if value is None:
        return "–"
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g}"


def show(value: Any) -> str:
    """A check's value or limit, whatever its shape, on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value))
    return str(value)


def describe_hardware(hardware: Mapping[str, Any], device: str | None = None) -> str:
    """One line: the GPUs where the run used one, else the CPU."""
    gpus = hardware.get("gpus") or []
    cpu = hardware.get("cpu")
    cores = f", {hardware['cores']} cores" if hardware.get("cores") else ""
    if gpus and device != "cpu":
        return f"{device or gpus[0]}"
    return f"{cpu}{cores}" if cpu else device or "–"
