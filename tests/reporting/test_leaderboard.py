import json
from types import SimpleNamespace

import pytest

from moat.config import paths
from moat.config.grid import Evaluation, Run
from moat.config.project import Project
from moat.reporting import leaderboard
from moat.reporting.results import Results

CLEAN = {"clean": {"attack": "none", "eps": 0.0}}
PGD = {"pgd10": {"attack": "pgd", "eps": 8 / 255, "steps": 10}}
AA = {"aa": {"attack": "autoattack", "eps": 8 / 255, "n_iter": 100, "n_targets": 9, "n_queries": 5000}}
DETACHED = {"aa_det": {**AA["aa"], "view": "detached"}}
ACCURACY = {"clean": 0.8, "pgd10": 0.5, "aa": 0.4, "aa_det": 0.25, "worst": 0.2}


def write(results: Results, run: Run, suite: str, settings: dict) -> None:
    """The JSON of an evaluation with these settings and the accuracies above, on 64 images."""
    path = results.file(paths.evaluation(results.scale, run, suite)).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    worst = {"worst": {"of": list(settings)}} if len(settings) > 2 else {}
    named = [*settings, *worst]
    content = {
        "suite": suite,
        "settings": settings,
        "worst_case": worst,
        "accuracy": {name: {"accuracy": ACCURACY[name], "n": 64} for name in named},
        "flags": {},
        "run": {"dataset": run.dataset, "arch": run.arch, "method": run.method, "scale": "smoke"},
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("suites", "autoattack", "external"),
    [
        ({"quick": {**CLEAN, **PGD}}, None, None),
        ({"trust": AA}, None, None),  # without a clean accuracy there is no entry
        ({"quick": {**CLEAN, **AA}}, "40.00", None),
        ({"trust": {**CLEAN, **AA, **DETACHED}}, "25.00", "20.00"),
        ({"quick": {**CLEAN, **AA}, "trust": {**CLEAN, **PGD, **AA, **DETACHED}}, "25.00", "20.00"),
        ({}, None, None),
    ],
    ids=["no-autoattack", "no-clean", "one-setting", "worst-of-two", "the-larger-suite", "not-evaluated"],
)
def test_each_run_with_autoattack_has_one_entry(project, suites, autoattack, external):
    results = Results(project / "results", "smoke", project=Project(project))
    run = Run("digits", "resnet18", "pgd-at", 0)
    for suite, settings in suites.items():
        write(results, run, suite, settings)
    grid = SimpleNamespace(evaluations=[Evaluation(run, suite) for suite in ("quick", "trust", "dwf")])
    found = leaderboard.entries(grid, results)
    if autoattack is None:
        assert found == {}
    else:
        (entry,) = found.values()
        assert list(found) == ["digits/resnet18/pgd-at/seed0"]
        assert (entry["autoattack_acc"], entry.get("external"), entry["clean_acc"]) == (autoattack, external, "80.00")
        assert entry["name"] == Project(project).method("pgd-at")["title"]
