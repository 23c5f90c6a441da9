"""What is missing or must not be trusted, run by run: the problems of a scale in one list."""

from collections.abc import Mapping
from typing import Any

from moat.config import paths
from moat.config.grid import Grid, Run
from moat.provenance.staleness import describe
from moat.reporting import provenance
from moat.reporting.results import Results

KINDS = ("not trained", "not evaluated", "not checked", "not probed", "check failed", "stale")


def find(grid: Grid, results: Results) -> list[dict[str, Any]]:
    """One record per problem: ``run``, ``kind`` (of :data:`KINDS`), ``what`` exactly, the ``command`` that mends it.

    A run that is not trained is listed once, without its missing evaluations and checks.
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
    for probe in grid.probes:
        run, path = probe.run, paths.probe(results.scale, probe.run, probe.name)
        if results.run(run) is not None and not results.file(path).exists():
            wrong.append({"run": paths.run_name(run), **_problem("not probed", probe.name, path, results.scale)})
        elif why := results.stale_probe(run, probe.name):
            what = f"probe {probe.name}: {describe(why)}"
            wrong.append({"run": paths.run_name(run), **_problem("stale", what, path, results.scale)})
    return wrong


def _of_run(run: Run, suites: list[str], checked: bool, results: Results) -> list[dict[str, str]]:
    scale = results.scale
    training, checks_file = paths.run_dir(scale, run) / "run.json", paths.checks(scale, run)
    evaluated = [suite for suite in suites if results.has_evaluation(run, suite)]
    if results.run(run) is None and not evaluated:
        return [_problem("not trained", "", training, scale)]
    found = [
        _problem("not evaluated", suite, paths.evaluation(scale, run, suite), scale)
        for suite in suites
        if suite not in evaluated
    ]
    checks = results.checks(run)
    if checked and checks is None:
        found.append(_problem("not checked", "", checks_file, scale))
    elif checked and not checks["passed"]:
        found.append(_problem("check failed", ", ".join(checks["failed"]), checks_file, scale))
    made = [("training", training, results.stale_run(run))]
    for suite in evaluated:
        made.append((f"evaluation {suite}", paths.evaluation(scale, run, suite), results.stale_evaluation(run, suite)))
    made.append(("checks", checks_file, results.stale_checks(run)))
    return found + [_problem("stale", f"{what}: {describe(why)}", path, scale) for what, path, why in made if why]


def _problem(kind: str, what: str, path, scale: str) -> dict[str, str]:
    command = provenance.command([path], scale) + (" refresh=stale" if kind == "stale" else "")
    return {"kind": kind, "what": what, "command": command}


def count(problems: list[Mapping[str, Any]]) -> dict[str, int]:
    """kind -> number, in the order of :data:`KINDS`, without those that do not occur."""
    found = {kind: sum(problem["kind"] == kind for problem in problems) for kind in KINDS}
    return {kind: number for kind, number in found.items() if number}
