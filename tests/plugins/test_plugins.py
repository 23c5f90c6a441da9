"""A method, an attack and a mixture of a project's own, one file and one YAML each, through every command.

The files are in ``project/`` beside this one; a project is a copy of this one's configuration with them added.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import moat
from moat.attacks.parts.views import views_of
from moat.base import plugins
from moat.base.errors import ConfigError
from moat.commands.cli import main
from moat.config.project import Project
from moat.models import nets
from moat.planning import report
from moat.training.models import load_model
from project_copy import copy_project, plugins_forgotten

ROOT = Path(__file__).parents[2]
OWN = Path(__file__).parent / "project"
RUN = "runs/digits/lenet5/{}/seed0"
METHODS = ("noisy-training", "pgd-at-halves")
METHODS_ARE = {"noisy-training": "class 'noisy-training'", "pgd-at-halves": "mixture 'halves'"}


@pytest.fixture(scope="module", autouse=True)
def leave_no_plugin_behind():
    with plugins_forgotten():
        yield


def make(root: Path) -> Path:
    """A project in an empty folder: this one's configuration, and the plug-ins."""
    copy_project(root)
    for path in (path for path in OWN.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        target = root / path.relative_to(OWN)
        target.parent.mkdir(parents=True, exist_ok=True)
        # A file that is there already, as attacks.yaml, gets what is new at its end.
        target.write_text((target.read_text() if target.exists() else "") + path.read_text())
    return root


def moat_in(root: Path, *command: str) -> None:
    assert main(["--project", str(root), *command]) == 0, command


def plan(root: Path, capsys) -> dict:
    capsys.readouterr()
    moat_in(root, "plan", "--scale", "toy", "--studies", "toy", "--hardware", "cpu", "--json")
    return json.loads(capsys.readouterr().out)


def statuses(planned: dict, kind: str) -> dict[str, tuple[str, list[str]]]:
    return {job["method"]: (job["status"], job["stale"]) for job in planned["jobs"] if job["kind"] == kind}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The project after all commands."""
    root = make(tmp_path_factory.mktemp("project"))
    results = root / "results" / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        moat_in(root, "fetch", "digits", "--into", "resources/digits")
        data = ["--data", str(results / "data" / "digits.safetensors")]
        moat_in(root, "prepare", "digits", "--from", "resources/digits", "--scale", "toy", "--out", data[1])
        for method in METHODS:
            run = str(results / RUN.format(method))
            named = ["--dataset", "digits", "--arch", "lenet5", "--method", method, "--seed", "0", "--scale", "toy"]
            moat_in(root, "train", *named, *data, "--out", run)
            rows = results / RUN.format(method).replace("runs", "evaluations") / "toy.parquet"
            moat_in(root, "evaluate", "--run", run, "--suite", "toy", "--scale", "toy", *data, "--out", str(rows))
            checks = results / f"{RUN.format(method).replace('runs', 'checks')}.json"
            few = ["--limit", "12", "--steps", "3", "--queries", "10"]
            moat_in(root, "verify", "--run", run, *data, *few, "--out", str(checks))
        shown = ["--scale", "toy", "--studies", "toy"]
        moat_in(root, "tabulate", *shown)
        moat_in(root, "tabulate", *shown, "--cells")
        moat_in(root, "report", *shown)
    return root


def test_a_plan_knows_them_before_anything_is_run(tmp_path, capsys):
    planned = plan(make(tmp_path), capsys)
    assert statuses(planned, "run") == {method: ("missing", []) for method in METHODS}
    # Neither the method nor the attack declares a cost; the mixture is trained by one that does.
    assert planned["unknown_costs"] == ["attack corners", "method noisy-training"]
    assert planned["gpu_hours"] > 0


def test_a_plan_after_all_is_done_finds_nothing_to_do(finished, capsys):
    planned = plan(finished, capsys)
    assert statuses(planned, "run") == {method: ("done", []) for method in METHODS}
    assert statuses(planned, "evaluation") == statuses(planned, "check") == statuses(planned, "run")
    # Nothing that nobody declares a cost for is left to be assumed.
    assert planned["unknown_costs"] == [] and not any("unknown cost" in line for line in report.lines(planned))


def test_a_run_says_what_it_was_told(finished):
    records = {
        method: json.loads((finished / "results/toy" / RUN.format(method) / "run.json").read_text())
        for method in METHODS
    }
    noisy, halves = (records[method] for method in METHODS)
    assert (noisy["class"], noisy["mixture"], noisy["recipe"]["noise"]) == ("noisy-training", None, {"sigma": 0.125})
    assert (halves["class"], halves["mixture"], halves["model"]["temperature"]) == ("pgd-at", "halves", 0.5)
    assert not any(plugins.is_own(record) for record in records.values())
    assert plugins.is_own({**halves, "mixture": None})


def test_the_mixture_is_loaded_and_attacked_by_its_views(finished):
    model = load_model(finished / "results/toy" / RUN.format("pgd-at-halves"))
    assert type(model).__name__ == "Halves" and not model.training
    views, x = views_of(model), torch.rand(3, 3, 12, 12)
    assert list(views) == ["straight-through", "detached", "left", "right"]
    both = torch.stack([views["left"].module(x), views["right"].module(x)])
    weights = (model.router(x) / 0.5).softmax(1)
    torch.testing.assert_close(model(x), (weights.T[..., None] * both).sum(0))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_loaded_from_anywhere(finished, tmp_path, monkeypatch, method):
    """With the plug-ins of the project that it lies in; where it was moved out of that, the message says what lacks."""
    run, elsewhere = finished / "results/toy" / RUN.format(method), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    plugins.use_project(elsewhere)
    assert moat.load(run) is not None
    plugins.use_project(elsewhere)
    moved = Path(shutil.copytree(run, elsewhere / "moved"))
    with pytest.raises(ConfigError, match=rf"moved/run.json: the run is of .*{METHODS_ARE[method]}.*plugins/"):
        moat.load(moved)
    plugins.use_project(finished)


@pytest.mark.parametrize(("method", "settings"), [(METHODS[0], 3), (METHODS[1], 4)])
def test_an_evaluation_has_the_rows_of_the_attack(finished, method, settings):
    path = finished / "results/toy" / RUN.format(method).replace("runs", "evaluations") / "toy.parquet"
    rows, record = pd.read_parquet(path), json.loads(path.with_suffix(".json").read_text())
    assert rows["setting"].nunique() == settings
    corners = rows[rows["setting"] == "corners"]
    assert len(corners) == 24 and corners["linf"].max() == pytest.approx(16 / 255, abs=1e-6)
    assert record["settings"]["corners"]["corners"] == 6
    assert ("moe_adaptive" in record["not_applicable"]) == (method == "noisy-training")


def test_the_checks_look_at_the_router(finished):
    verdicts = {}
    for method in METHODS:
        path = finished / "results/toy" / f"{RUN.format(method).replace('runs', 'checks')}.json"
        verdicts[method] = {each["check"]: each["state"] for each in json.loads(path.read_text())["checks"]}
    assert verdicts["noisy-training"]["router"] == "not-applicable" != verdicts["pgd-at-halves"]["router"]


def test_table_and_page_show_them(finished):
    cells = pd.read_csv(finished / "results/toy/tables/cells-toy.csv")
    assert set(cells["method"]) == set(METHODS) and cells["measured"].notna().all()
    page = (finished / "results/toy/report-toy.html").read_text()
    assert "Training on noise" in page or "Noise" in page
    assert "Halves" in page and "Corners" in page


# -- what a change makes of them -------------------------------------------------
@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("plugins/methods/noisy_training.py", "x + self", "x - self", {"noisy-training": ["method"]}),
        ("plugins/models/halves.py", "(weights.T", "(-weights.T", {"pgd-at-halves": ["nets"]}),
        # What is said of a parameter is no behaviour.
        ("plugins/methods/noisy_training.py", "in pixel units", "in units of a pixel", {}),
        ("plugins/attacks/corner_search.py", "* 2 - 1", "* 2 - 2", {}),
    ],
)
def test_a_changed_plugin_makes_stale_what_used_it(finished, capsys, file, old, new, stale):
    path = finished / file
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new))
        runs = statuses(plan(finished, capsys), "run")
        evaluations = statuses(plan(finished, capsys), "evaluation")
    finally:
        path.write_text(text)
    assert {method: parts for method, (_, parts) in runs.items() if parts} == stale
    assert all((status == "stale") == bool(parts) for status, parts in runs.values())
    if "attacks" in file:
        assert evaluations == {method: ("stale", ["attacks"]) for method in METHODS}


# -- what is wrong is named ------------------------------------------------------
@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "config/methods/noisy-training.yaml",
            "validation:",
            "noise: {sigma: 2}\nvalidation:",
            r"noisy-training.yaml: noise.sigma: 2 .*standard deviation in pixel units"
            r"; declared in plugins/methods/noisy_training.py: NoisyTraining.PARAMETERS",
        ),
        (
            "config/methods/noisy-training.yaml",
            "validation:",
            "noise: {sigm: 0.1}\nvalidation:",
            r"in noise: unknown key 'sigm' \(did you mean 'sigma'\?\)",
        ),
        (
            "config/methods/pgd-at-halves.yaml",
            ", temperature: 0.5",
            "",
            r"in model: the key 'temperature' is missing.*plugins/models/halves.py: PARAMETERS",
        ),
        ("config/methods/pgd-at-halves.yaml", "mixture: halves", "mixture: halfs", "unknown mixture 'halfs'.*halves"),
        (
            "config/attacks.yaml",
            "corners: 6",
            "corners: 0",
            r"attacks.yaml: corners.corners: 0 .*a whole number from 1 \(how many corners are tried\)",
        ),
        (
            "config/attacks.yaml",
            "corners: 6",
            "corner: 6",
            r"unknown key 'corner'.*plugins/attacks/corner_search.py: PAR",
        ),
        ("config/attacks.yaml", "attack: corner_search", "attack: corner", "unknown attack 'corner'.*corner_search"),
        ("plugins/methods/noisy_training.py", '"maximum"', '"most"', "noise.sigma: unknown word 'most'"),
        ("plugins/methods/noisy_training.py", '"minimum": 0', '"minimum": min(0, 1)', "PARAMETERS: must be a literal"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, file, old, new, said):
    root = make(tmp_path)
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    project = Project(root)
    with pytest.raises(ConfigError, match=said):
        for method in METHODS:
            project.method(method)
        project.attack_settings("toy")


@pytest.mark.parametrize("place", ["methods/trades.py", "models/nets.py", "attacks/pgd.py"])
def test_a_plugin_may_not_hide_one_of_moats_own(tmp_path, place):
    root = make(tmp_path)
    (root / "plugins" / place).write_text("")
    with pytest.raises(ConfigError, match=f"plugins/{place}: moat has an? (module|attack) of this name"):
        Project(root).method("noisy-training")
        Project(root).attacks()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "models/dwf.py",
            'MIXTURE = "Dwf"\nPARAMETERS = {}\n',
            "plugins/models/dwf.py: moat has a mixture 'dwf', .*moe/dwf.py",
        ),
        ("models/sramoe/__init__.py", "MIXTURE = None\n", "sramoe/__init__.py: moat has a mixture 'sramoe'"),
        (
            "models/another.py",
            "NETS = {'resnet18': None}\n",
            "plugins/models/another.py: there is a net resnet18 already",
        ),
    ],
)
def test_a_plugin_may_not_take_the_name_of_a_mixture_or_net_of_moat(tmp_path, file, text, said):
    path = make(tmp_path) / "plugins" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    plugins.use_project(tmp_path)
    with pytest.raises(ConfigError, match=said):
        plugins.mixtures()
        nets.names()
