"""What is not there or not to be trusted, run by run: the failures of a scale in one list."""

from collections.abc import Mapping
from typing import Any

from moat.config import paths
from moat.config.grid import Grid, Run
from moat.reporting import provenance
from moat.reporting.records import STALE_RUN, stale
from moat.reporting.results import Results
from moat.reporting.usage import probes

KINDS = ("not trained", "not evaluated", "not checked", "not probed", "check failed", "stale")


def find(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """One record per problem: ``run``, ``kind`` (of :data:`KINDS`), ``what`` exactly, the ``command`` that mends it.

    Of a run that is not trained nothing else is said.
    """
    suites: dict[Run, list[str]] = {}
    for each in grid.evaluations:
        suites.setdefault(each.run, []).append(each.suite)
    checked = set(grid.checks)
    wrong = [
        {"run": paths.run_name(run), **problem}
        for run in grid.runs
        for problem in _of_run(run, suites.get(run, []), run in checked, results)
    ]
    return wrong + [
        {"run": paths.run_name(each.run), **_problem("not probed", each.name, path, results.scale)}
        for each in probes(grid)
        if results.run(each.run) is not None and not results.probe_path(each.run, each.name).exists()
        for path in [paths.probe(results.scale, each.run, each.name)]
    ]


def _of_run(run: Run, suites: list[str], checked: bool, results: Results) -> list[dict[str, str]]:
    scale, record = results.scale, results.run(run)
    if record is None and not any(results.has_evaluation(run, suite) for suite in suites):
        return [_problem("not trained", "", paths.run_dir(scale, run) / "run.json", scale)]
    missing = [suite for suite in suites if not results.has_evaluation(run, suite)]
    found = [_problem("not evaluated", suite, paths.evaluation(scale, run, suite), scale) for suite in missing]
    checks = results.checks(run)
    if checked and checks is None:
        found.append(_problem("not checked", "", paths.checks(scale, run), scale))
    elif checked and not checks["passed"]:
        found.append(_problem("check failed", ", ".join(checks["failed"]), paths.checks(scale, run), scale))
    return found + [
        _problem("stale", f"{what}: {_said(parts)}", path, scale, refresh=True)
        for what, path, parts in _made(run, suites, results)
        if parts
    ]


def _made(run: Run, suites: list[str], results: Results):
    """(what, the file to make again, what of it is stale) of everything that was made of a run."""
    scale = results.scale
    yield "training", paths.run_dir(scale, run) / "run.json", results.stale_run(run)
    for suite in (suite for suite in suites if results.has_evaluation(run, suite)):
        parts = stale(run, results.stale_evaluation(run, suite), results)
        yield f"evaluation {suite}", paths.evaluation(scale, run, suite), parts
    if results.checks(run) is not None:
        yield "checks", paths.checks(scale, run), stale(run, results.stale_checks(run), results)


def _said(parts: list[str]) -> str:
    changed = ", ".join(part for part in parts if part != STALE_RUN)
    return ", ".join(filter(None, (changed and f"{changed} changed since", "its run is stale" * (STALE_RUN in parts))))


def _problem(kind: str, what: str, path, scale: str, *, refresh: bool = False) -> dict[str, str]:
    return {"kind": kind, "what": what, "command": provenance.command([path], scale) + " refresh=stale" * refresh}


def count(problems: list[Mapping[str, Any]]) -> dict[str, int]:
    """kind -> number, in the order of :data:`KINDS`, without those that do not occur."""
    found = {kind: sum(problem["kind"] == kind for problem in problems) for kind in KINDS}
    return {kind: number for kind, number in found.items() if number}
