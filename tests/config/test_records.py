"""What is stale of the records of a scale: by another recipe, suite, budget or scale, or by other models."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moat.base.files import hash_file, read_json, write_json
from moat.config import paths, recipes
from moat.config.grid import Run, build_grid
from moat.config.project import Project
from moat.config.records import Records
from moat.config.status import Statuses
from moat.planning.status import plan
from moat.provenance.staleness import describe
from project_copy import copy_project, edit_yaml

ROOT = Path(__file__).parents[2]
SCALE = "smoke"
TRADES, STANDARD = Run("digits", "resnet18", "trades", 0), Run("digits", "resnet18", "standard", 0)
LAST = Run("digits", "resnet18", "trades", 0, "last")
DWF = Run("digits", "resnet18", "dwf", 0)
BENIGN = Run("digits", "resnet18", "dwf-expert-benign", 0)
EVALUATED = {"quick", "trust", "epsilon"}
PROBED = {"weights", "features"}


def named(run: Run, sha: str) -> dict:
    place = {name: value for name, value in vars(run).items() if name != "weights"}
    return {**place, "scale": SCALE, "model_sha256": sha}


def train(project: Project, run: Run, sha: str = "a", **more) -> None:
    """The record that a training by today's recipe leaves."""
    place = {"dataset": run.dataset, "arch": run.arch, "method": run.method, "seed": run.seed}
    digest = recipes.digest(recipes.resolve_run(project, SCALE, **place))
    record = {**named(run, sha), "last_sha256": f"{sha} last", "recipe_digest": digest, **more}
    write_json(project.root / paths.run_dir(SCALE, run) / "run.json", record)
    (project.root / paths.run_dir(SCALE, run) / "history.csv").write_text("epoch\n1\n")


def measure(project: Project, run: Run, sha: str = "a") -> None:
    """The records of evaluations, checks and probes by today's configuration."""
    write = [
        (paths.evaluation(SCALE, run, suite), recipes.resolve_evaluation(project, SCALE, suite)) for suite in EVALUATED
    ]
    write += [(paths.probe(SCALE, run, name), recipes.resolve_probe(project, SCALE, name)) for name in PROBED]
    write += [(paths.checks(SCALE, run), recipes.resolve_checks(project, SCALE))]
    for path, resolved in write:
        content = {"run": {**named(run, sha), "weights": "best"}, "recipe_digest": recipes.digest(resolved)}
        write_json((project.root / path).with_suffix(".json"), content)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Project:
    project = Project(copy_project(tmp_path_factory.mktemp("project")))
    for run in (TRADES, STANDARD):
        train(project, run)
        measure(project, run)
    return project


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(measured) -> Iterator[Project]:
    """A project in which TRADES and standard training are trained and measured; each test finds it so."""
    before = contents(measured.root)
    yield Project(measured.root)
    after = contents(measured.root)
    for path in after.keys() - before.keys():
        path.unlink()
    for path, content in before.items():
        if after.get(path) != content:
            path.write_bytes(content)


def stale(project: Project) -> dict[str, list[str]]:
    """``trades``, ``trades quick``, ``trades checks``, … -> why it is stale; what is current is left out."""
    records = Records(project.root / "results", SCALE, project)
    found = {}
    for run in (TRADES, STANDARD):
        found[run.method] = records.stale_run(run)
        found[f"{run.method} checks"] = records.stale_checks(run)
        found |= {f"{run.method} {suite}": records.stale_evaluation(run, suite) for suite in EVALUATED}
        found |= {f"{run.method} {name}": records.stale_probe(run, name) for name in PROBED}
    return {name: reasons for name, reasons in found.items() if reasons}


def add(project: Project, run: Run, content: dict) -> None:
    """To the record of a run."""
    path = project.root / paths.run_dir(SCALE, run) / "run.json"
    write_json(path, read_json(path) | content)


def edit(project: Project, file: str, change) -> None:
    edit_yaml(project.root / file, change)


def both(*names: str) -> dict[str, list[str]]:
    said = {"": "recipe", "checks": "check budget", **dict.fromkeys(EVALUATED, "suite or its settings")}
    said |= dict.fromkeys(PROBED, "probe")
    return {f"{method} {name}".strip(): [said[name]] for method in ("trades", "standard") for name in names}


MEASURED = ("checks", *EVALUATED, *PROBED)
TRADES_IS_STALE_ELSEWHERE = {f"trades {name}": ["its run"] for name in MEASURED}
TRADES_IS_STALE = {"trades": ["recipe"], **TRADES_IS_STALE_ELSEWHERE}


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("config/methods/trades.yaml", lambda recipe: recipe["loss"].update(beta=3.0), TRADES_IS_STALE),
        ("config/methods/trades.yaml", lambda recipe: recipe.update(version=7), TRADES_IS_STALE),
        # What is said about a method, and changes no number.
        ("config/methods/trades.yaml", lambda recipe: recipe.update(title="T", sources={"a": "b"}), {}),
        ("config/methods/trades.yaml", lambda recipe: recipe.pop("cost"), {}),
        ("config/methods/pgd-at.yaml", lambda recipe: recipe.update(epochs=7), {}),
        (f"config/scales/{SCALE}.yaml", lambda scale: scale["recipe"].update(epochs=4), None),
        (f"config/scales/{SCALE}.yaml", lambda scale: scale["recipes"].update(trades={"epochs": 9}), TRADES_IS_STALE),
        (f"config/scales/{SCALE}.yaml", lambda scale: scale["resources"]["train"].update(runtime=9), {}),
        # The checks have a limit of their own.
        (
            f"config/scales/{SCALE}.yaml",
            lambda scale: scale["evaluation"].update(limit=7),
            both(*(name for name in MEASURED if name != "checks")),
        ),
        (f"config/scales/{SCALE}.yaml", lambda scale: scale["evaluation"].update(batch_size=7), both(*MEASURED)),
        (f"config/scales/{SCALE}.yaml", lambda scale: scale["checks"].update(limit=7), both("checks")),
        (f"config/scales/{SCALE}.yaml", lambda scale: scale["checks"].update(steps=7), both("checks")),
        (f"config/scales/{SCALE}.yaml", lambda scale: scale["attacks"]["square"].update(n_queries=7), both("trust")),
        ("config/suites.yaml", lambda suites: suites["quick"]["settings"].remove("fgsm"), both("quick")),
        ("config/suites.yaml", lambda suites: suites["quick"].update(title="T"), {}),
        ("config/attacks.yaml", lambda attacks: attacks["pgd10_e1"].update(step_size="1/510"), both("epsilon")),
        ("config/probes.yaml", lambda probes: probes["features"].update(images=9), both("features")),
        # The same value written otherwise.
        ("config/attacks.yaml", lambda attacks: attacks["pgd10_e1"].update(eps=1 / 255), {}),
        ("config/attacks.yaml", lambda attacks: attacks["pgd10_e1"].update(eps="2/510"), {}),
        ("config/attacks.yaml", lambda attacks: attacks["pgd10_e1"].update(eps="2/255"), both("epsilon")),
        ("config/attacks.yaml", lambda attacks: attacks["pgd10_e1"].update(protocol="correct", restarts=1), {}),
        ("config/attacks.yaml", lambda attacks: attacks["pgd10_e1"].update(restarts=2), both("epsilon")),
        ("config/methods/trades.yaml", lambda recipe: recipe["loss"].update(beta=6), {}),
    ],
)  # fmt: skip
def test_another_recipe_suite_setting_or_budget_makes_stale_what_it_made(project, file, change, expected):
    assert stale(project) == {}
    edit(project, file, change)
    found = stale(project)
    if expected is None:
        assert found["trades"] == found["standard"] == ["recipe"]
        assert {tuple(found[f"trades {name}"]) for name in MEASURED} == {("its run",)}
    else:
        assert found == expected


def described(run: Run, project: Project) -> dict[str, str]:
    return {"data_digest": recipes.digest(recipes.resolve_content(project, run.dataset))}


@pytest.mark.parametrize(
    ("change", "is_stale"),
    [
        (lambda data: data.update(mean=[0.1, 0.1, 0.1]), True),
        (lambda data: data["augment"].update(flip=not data["augment"]["flip"]), True),
        (lambda data: data["augment"].update(crop_padding=3), True),
        # What is said about a data set, and where its files come from, changes no number.
        (lambda data: data.update(title="T", citation="C"), False),
        (lambda data: data["images"].update(train=7), False),
        (lambda data: data.update(files=[{**file, "urls": ["https://x.org/"]} for file in data["files"]]), False),
    ],
)
def test_another_description_of_a_data_set_makes_its_runs_stale(project, change, is_stale):
    add(project, TRADES, described(TRADES, project))
    assert stale(project) == {}
    edit(project, f"config/datasets/{TRADES.dataset}.yaml", change)
    assert stale(Project(project.root)) == ({"trades": ["data"], **TRADES_IS_STALE_ELSEWHERE} if is_stale else {})


def test_data_prepared_again_with_other_content_makes_stale_what_used_it(project):
    prepared = project.root / paths.prepared(SCALE, TRADES.dataset)
    prepared.parent.mkdir(parents=True)
    prepared.write_bytes(b"before")
    add(project, TRADES, {"data": {"sha256": hash_file(prepared)}})
    assert stale(project) == {}
    prepared.write_bytes(b"after it")
    assert stale(project) == {"trades": ["data"], **TRADES_IS_STALE_ELSEWHERE}
    # Where it is not at all, nothing is known.
    prepared.unlink()
    assert stale(project) == {}


def test_what_was_measured_on_a_run_that_was_trained_again_is_stale(project):
    train(project, TRADES, sha="b")
    assert stale(project) == {f"trades {name}": ["model"] for name in MEASURED}
    # The weights of the last epoch have files of their own.
    measure(project, LAST, sha="b last")
    records = Records(project.root / "results", SCALE, project)
    assert (records.stale_evaluation(LAST, "quick"), records.stale_checks(LAST)) == ([], [])
    measure(project, LAST, sha="b")
    assert (records.stale_evaluation(LAST, "quick"), records.stale_checks(LAST)) == (["model"], ["model"])
    measure(project, TRADES, sha="b")
    assert stale(project) == {}


@pytest.mark.parametrize(
    ("there", "status"), [(("best", "last"), "done"), (("best",), "missing"), (("last",), "missing"), ((), "missing")]
)
def test_a_run_without_the_weights_that_are_to_be_measured_is_trained_again(project, there, status):
    """Its evaluations are missing, those of the best and those of the last epoch."""
    best = Run("digits", "resnet18", "fgsm-at", 0)
    train(project, best)
    for weights in there:
        run = replace(best, weights=weights)
        (project.root / paths.weights(SCALE, run)).write_bytes(b"\2\0\0\0\0\0\0\0{}")
    entries = plan(project, build_grid(project, SCALE, ["dwf"]))
    assert [entry["status"] for entry in entries if (entry["kind"], entry.get("method")) == ("run", "fgsm-at")] == [
        status
    ]


def test_examples_transferred_from_a_run_that_was_trained_again_are_stale(project):
    path = project.root / paths.evaluation(SCALE, TRADES, "trust").with_suffix(".json")
    source = {
        "transfer_seed": {"attack": "pgd", "transfer_from": "seed", "source": named(STANDARD, "a")},
        "transfer_arch": {"attack": "pgd", "transfer_from": "arch"},
        "fog-1": {"attack": "corruption", "source": "official"},
    }
    write_json(path, {**read_json(path), "settings": source})
    assert stale(project) == {}
    train(project, STANDARD, sha="b")
    measure(project, STANDARD, sha="b")
    assert stale(project) == {"trades trust": ["model"]}


def test_a_run_that_started_from_another_model_is_stale_and_from_a_stale_run_too(project):
    train(project, BENIGN)
    started = {"initialize_from": {"benign": {"path": "somewhere", "model_sha256": "a"}}}
    train(project, DWF, **started)
    records = Records(project.root / "results", SCALE, project)
    assert records.stale_run(DWF) == []
    train(project, BENIGN, sha="b")
    assert records.stale_run(DWF) == ["model"]
    train(project, BENIGN)
    edit(project, "config/methods/dwf-expert-benign.yaml", lambda recipe: recipe.update(epochs=7))
    edit(project, f"config/scales/{SCALE}.yaml", lambda scale: scale["recipe"].pop("epochs"))
    train(project, DWF, **started)
    records = Records(project.root / "results", SCALE, project)
    assert (records.stale_run(BENIGN), records.stale_run(DWF)) == (["recipe"], ["initial run"])


def test_the_evidence_that_comes_with_the_project_has_an_answer():
    """It has no weights, and lacks nothing for that."""
    own = Project(ROOT)
    grid = build_grid(own, "mini", own.config()["studies"])
    statuses = Statuses(Records(ROOT / "results/evidence", "mini", own), grid, own.config()["studies"])
    found = {statuses.of_result("run", run).status for run in grid.runs}
    assert found <= {"done", "stale"} and found


def test_what_is_cut_short_is_damaged_and_what_is_not_there_missing(project):
    records = Records(project.root / "results", SCALE, project)
    assert records.status("check", TRADES) == ("done", [])
    path = project.root / paths.checks(SCALE, TRADES)
    path.write_bytes(path.read_bytes()[:-3])
    assert records.status("check", TRADES) == ("damaged", [])
    path.unlink()
    assert records.status("check", TRADES) == ("missing", [])


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([], ""),
        (["nets"], "nets changed since"),
        (["nets", "recipe"], "nets, recipe changed since"),
        (["suite or its settings", "data"], "suite or its settings, data changed since"),
        (["checks", "its run"], "checks changed since, its run is stale"),
        (["model"], "a model that it was made from was trained again"),
    ],
)
def test_why_in_words(reasons, said):
    assert describe(reasons) == said
