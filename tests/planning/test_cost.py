"""The cost model: passes through the net as declared, against the multiply-adds that the code really runs."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_methods import distinct_recipes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchlib.methods import begin
from moat.base.errors import ConfigError, DataError
from moat.base.plugins import attack_passes
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.config.recipes import digest, resolve_data, resolve_recipe, resolve_run
from moat.evaluation import evaluate, verify
from moat.evaluation.evidence import Budget
from moat.evaluation.scoring import check_fit
from moat.kernels import winograd
from moat.methods.base import Step
from moat.planning import macs
from moat.planning.cost import (
    checks_passes,
    fit_passes,
    knows_setting,
    knows_training,
    setting_passes,
    training_passes,
    validation_passes,
)
from moat.planning.jobs import Workload, jobs_of, prepared_images
from moat.planning.macs import SHIPPED, Net, count, describe, macs_of, nets_of_studies
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
PROJECT = Project(ROOT)
FAMILIES = attack_passes()
# The gradient of the first layer's input, which training does not need, is counted by the model.
CLOSE = 0.12


@pytest.fixture(autouse=True)
def pytorchs_convolutions(monkeypatch):
    """Only they are seen by a counter of PyTorch's operations."""
    monkeypatch.setattr(winograd, "library", lambda: None)


def small(name):
    """The recipe of a method with attacks of three steps, and its net at an eighth of the width on 8x8 digits."""
    recipe = _shorter(resolve_recipe(PROJECT, "smoke", name))
    model = {"width": 0.125, **recipe.get("model", {})}
    return recipe, Net(recipe["class"], "resnet18", describe(model), 8, 3, 10)


def _shorter(content):
    if not isinstance(content, dict):
        return content
    return {key: _three(value) if key == "steps" else _shorter(value) for key, value in content.items()}


def _three(steps):
    """No list stays longer than one: which of its numbers is drawn must not matter."""
    return [3] if isinstance(steps, list) else min(steps, 3)


class Counter(TorchDispatchMode):
    """Adds up the operations of convolutions and matrix products. (torch's own cannot be entered by autograd.grad.)"""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if count_of := flop_registry.get(function.overloadpacket):
            self.total += count_of(*args, **(kwargs or {}), out_val=result)
        return result


def flops(call):
    with Counter() as counter:
        call()
    return counter.total


@pytest.mark.brief(keep=lambda case: case["name"] in ("pgd-at", "hybrid"))
@pytest.mark.parametrize("name", distinct_recipes())
def test_the_declared_passes_are_those_that_an_update_runs(name):
    recipe, net = small(name)
    assert "cost" in recipe, f"config/methods/{name}.yaml: say what it costs"
    torch.manual_seed(0)
    method = begin(net, recipe, torch.device("cpu"))
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    spent = []
    # Methods of two phases differ between them.
    for epoch in (0, recipe["epochs"] - 1):
        method.begin_epoch(epoch)
        step = Step(0, epoch, recipe["epochs"], 0, 1000, torch.device("cpu"))
        spent.append(flops(lambda step=step: method.update(x, y, step)))
    passes = sum(spent) / len(spent) / 2 / len(x) / count(net)
    assert passes == pytest.approx(training_passes(recipe), rel=CLOSE)


@pytest.mark.parametrize("name", ["mixed-fixed", "mixednuts"])
def test_the_declared_fit_is_what_a_training_spends_on_held_out_images(name):
    recipe, net = small(name)
    recipe["fit"]["steps"] = 12
    method = begin(net, recipe, torch.device("cpu"))
    x, y = torch.rand(20, 3, 8, 8), torch.arange(20) % 10

    def accuracy(attack):
        attack(method.model, x, y)
        return 0.5

    spent = flops(lambda: method.end_epoch(0, accuracy)) / 2 / count(net)
    # Beside the attacks, all images are classified a few times.
    assert spent == pytest.approx(fit_passes(recipe, len(x)), rel=0.25)


def test_a_fit_takes_no_more_images_than_are_held_out():
    recipe = {"fit": {"steps": 10, "images": 1000, "targets": 9, "kept": [1, 2]}}
    for attacks, passes in ((3, 3 * 21), ("targets", 9 * 21), ("kept", 2 * 21)):
        costly = {**recipe, "cost": {"fit": {"attacks": attacks, "share": 0.5}}}
        assert fit_passes(costly, 200) == pytest.approx(100 * passes)
        assert fit_passes(costly, 5000) == pytest.approx(500 * passes)
    assert fit_passes(recipe, 200) == 0


@pytest.mark.parametrize(
    ("method", "passes"),
    # Relative costs as the arithmetic of the methods gives them: K steps of 2, passes of 1, trainings of 3.
    [("standard", 3), ("pgd-at", 23), ("trades", 27), ("mart", 26), ("advmoe-released", 16), ("advmoe", 48),
     ("dramoe", 27), ("dwf-expert-pgd", 63), ("dwf", 71), ("mocse", 3), ("mocse-at", 23)],
)  # fmt: skip
def test_passes_at_the_papers_settings(method, passes):
    assert training_passes(resolve_recipe(PROJECT, "paper", method)) == passes


@pytest.mark.parametrize(
    ("setting", "passes"),
    [
        ({"attack": "none"}, 3),
        ({"attack": "fgsm", "eps": 0.1}, 5),
        ({"attack": "pgd", "eps": 0.1, "step_size": 0.1, "steps": 10}, 23),
        ({"attack": "pgd", "eps": 0.1, "step_size": 0.1, "steps": 5, "eot": 2}, 23),
        # A radius of 0: nothing falls, and every restart runs.
        ({"attack": "pgd", "eps": 0.0, "step_size": 0.0, "steps": 4, "restarts": 3}, 30),
    ],
)
def test_passes_of_a_setting_are_those_that_it_runs(setting, passes):
    assert setting_passes(setting, FAMILIES) == passes
    recipe, net = small("standard")
    model = begin(net, recipe, torch.device("cpu")).model
    x = torch.rand(8, 3, 8, 8)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    # Whatever the setting, a model is first shown a few images.
    first = flops(lambda: check_fit(model, x))
    run = flops(lambda: evaluate(model, x, y, {"s": setting}, batch_size=8)) - first
    assert run / 2 / len(x) / count(net) == pytest.approx(passes, abs=0.2)


@pytest.mark.parametrize(
    ("setting", "passes"),
    [({"attack": "autoattack", "eps": 0.1}, 4823), ({"attack": "black box", "n_queries": 5000}, 5003)],
)
def test_passes_of_attacks_without_steps(setting, passes):
    assert setting_passes(setting, FAMILIES) == passes


def test_a_setting_counts_the_examples_and_methods_that_it_is_for(monkeypatch):
    load = Workload(PROJECT, "paper")
    settings = {
        "a": {"attack": "none"},
        "b": {"attack": "none", "limit": 300},
        "c": {"attack": "none", "requires": "router"},
    }
    monkeypatch.setattr(Project, "attack_settings", lambda self, suite, scale: settings)
    monkeypatch.setattr(Project, "worst_cases", lambda self, suite, scale: {})
    assert load.evaluation("cifar10", "s", "trades").evaluate == 3 * (10_000 + 300)
    assert load.evaluation("cifar10", "s", "dramoe").evaluate == 3 * (10_000 + 300 + 10_000)


def test_every_setting_of_the_project_has_a_cost():
    assert {name for name, setting in PROJECT.attacks().items() if not knows_setting(setting, FAMILIES)} == set()


@pytest.mark.parametrize(
    ("setting", "passes"),
    [
        ({"attack": "magic"}, 103),
        ({"attack": "magic", "restarts": 2}, 203),
        # What a plug-in means by a word may be something else, and nothing takes no steps.
        ({"attack": "magic", "steps": "many", "targets": [1, 2]}, 103),
        ({"attack": "magic", "steps": 0}, 103),
    ],
)
def test_an_attack_of_unknown_length_counts_as_pgd_50(setting, passes):
    assert not knows_setting(setting, FAMILIES)
    assert setting_passes(setting, FAMILIES) == passes


ATTACKED = {"attack": {"steps": 10}}


@pytest.mark.parametrize(
    ("recipe", "passes"),
    [
        ({}, 3),
        ({"cost": {}}, 3),
        ({"cost": {"attacks": {"attack": 0}}, **ATTACKED}, 26),
        (ATTACKED, 26),
        ({**ATTACKED, "other_attack": {"steps": [2, 4]}}, 35),
    ],
)
def test_a_method_without_a_cost_is_assumed_to_use_its_attacks(recipe, passes):
    assert not knows_training(recipe)
    assert training_passes(recipe) == passes


@pytest.mark.parametrize("part", ["attacks: {atack: 1}", "validations: [atack]"])
def test_a_cost_of_an_attack_that_the_recipe_does_not_have_is_refused(tmp_path, part):
    copy_project(tmp_path)
    path = tmp_path / "config" / "methods" / "pgd-at.yaml"
    path.write_text(path.read_text().replace("cost: {attacks: {attack: 1}", f"cost: {{{part}"))
    with pytest.raises(ConfigError, match=r"pgd-at.yaml: cost.\w+: unknown key 'atack' \(did you mean 'attack'"):
        Project(tmp_path).method("pgd-at")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("mixed-fixed", r"cost.fit.attacks: unknown number or list of fit 'alfas' \(did you mean 'alphas'"),
        ("pgd-at", "cost.fit: the recipe has no fit.steps"),
    ],
)
def test_a_cost_of_a_fit_that_the_recipe_does_not_have_is_refused(tmp_path, method, said):
    copy_project(tmp_path)
    path = tmp_path / "config" / "methods" / f"{method}.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("cost:")]
    path.write_text("\n".join([*lines, "cost: {forwards: 1, fit: {attacks: alfas}}", ""]))
    with pytest.raises(ConfigError, match=said):
        Project(tmp_path).method(method)


@pytest.mark.long
@pytest.mark.parametrize("budget", [{"steps": 2, "queries": 3}, {"steps": 4, "queries": 3}])
def test_the_checks_cost_what_the_planner_says(budget):
    recipe, net = small("standard")
    model = begin(net, recipe, torch.device("cpu")).model
    x = torch.rand(8, 3, 8, 8)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    # The calibration, once for each budget and on a net of its own.
    verify(model, x[:1], y[:1], eps=1e-4, budget=Budget(**budget))
    # A radius so small that nothing falls: every check goes to its end.
    run = flops(lambda: verify(model, x, y, eps=1e-4, batch_size=4, budget=Budget(**budget)))
    assert run / 2 / len(x) / count(net) == pytest.approx(checks_passes(PROJECT.planner()["checks"], budget), rel=0.02)


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, 23),
        ({"every": 5}, 4.6),
        # After epochs 40, 80 and the last.
        ({"every": 40}, 0.69),
        ({"every": 1000}, 0.23),
        ({"watch": {"attack": "pgd", "steps": 20}, "cost": {"validations": ["watch"]}}, 64),
    ],
)
def test_validation_counts_per_epoch(change, passes):
    recipe = {"epochs": 100, "validation": {"every": change.get("every", 1)}, **change}
    attack = {"attack": "pgd", "steps": 10}
    assert validation_passes(recipe, attack, FAMILIES) == pytest.approx(passes)


# -- multiply-adds ------------------------------------------------------------
@pytest.mark.long
def test_the_shipped_table_holds_every_net_of_the_studies():
    missing = [net for net in nets_of_studies(PROJECT) if net not in macs._read(SHIPPED)]
    assert not missing, f"python -m moat.planning.macs writes these: {missing[:3]}"


@pytest.mark.parametrize("net", [net for net in macs._read(SHIPPED) if net.image_size <= 16], ids=str)
def test_the_shipped_table_is_what_the_nets_compute(net):
    assert macs._read(SHIPPED)[net] == count(net)


@pytest.mark.parametrize(
    ("net", "expected"),
    # Counted independently (convolutions and matrix products at 32x32): see the papers' comparison tables.
    [(("pgd-at", "resnet18", "width=1.0"), 555.4e6), (("pgd-at", "wrn-28-10", "width=1.0"), 5243.3e6)],
)
def test_known_nets(net, expected):
    assert macs._read(SHIPPED)[Net(*net, 32, 3, 10)] == pytest.approx(expected, rel=1e-4)


def test_an_unknown_net_is_counted_once():
    net = Net("standard", "lenet5", "width=0.3", 28, 1, 10)
    counted = macs_of([net])[net]
    assert counted == count(net) > 10_000
    before = count.cache_info()
    assert macs_of([net, net]) == {net: counted}
    assert count.cache_info().misses == before.misses


# -- work ----------------------------------------------------------------------
def test_cost_and_counts_decide_no_result(tmp_path):
    """They may be corrected without anything being trained or prepared again."""
    copy_project(tmp_path)

    def digests():
        project = Project(tmp_path)
        run = resolve_run(project, "paper", dataset="cifar10", arch="resnet18", method="trades", seed=0)
        return digest(run), digest(resolve_data(project, "paper", "cifar10"))

    before = digests()
    for name, key in (("methods/trades", "cost"), ("datasets/cifar10", "images")):
        path = tmp_path / f"config/{name}.yaml"
        content = yaml.safe_load(path.read_text())
        del content[key]
        path.write_text(yaml.safe_dump(content))
    assert digests() == before


@pytest.mark.long
def test_work_of_a_grid_at_scale_paper():
    grid = build_grid(PROJECT, "paper", ["unified"])
    jobs = jobs_of(PROJECT, grid)
    run = "results/paper/{}/cifar10/resnet18/trades/seed0"
    net = 555_422_720
    training = jobs[run.format("runs") + "/run.json"]
    # 49,000 images, 1,000 held out, 100 epochs of TRADES-10 and PGD-10.
    assert training.work.train == 100 * 49_000 * 27 * net
    assert training.work.evaluate == 100 * 1_000 * 23 * net
    evaluation = jobs[run.format("evaluations") + "/epsilon.parquet"]
    assert evaluation.work.evaluate == 10_000 * (3 + 8 * 23) * net
    assert evaluation.needs == (training.path,)
    passes = yaml.safe_load((PROJECT.root / "config/planner.yaml").read_text())["checks"]
    per_image = passes["passes"] + 20 * passes["per_step"] + 1000 * passes["per_query"]
    assert jobs[run.format("checks") + ".json"].work.evaluate == 1_000 * per_image * net


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        ({}, {"train": 72_257, "val": 1000, "test": 26_032}),
        ({"validation": 257}, {"train": 73_000, "val": 257, "test": 26_032}),
        ({"train_limit": 8000, "test_limit": 500}, {"train": 8000, "val": 1000, "test": 500}),
        ({"train_limit": 80_000}, {"train": 72_257, "val": 1000, "test": 26_032}),
    ],
)
def test_images_as_the_scale_limits_them(limits, counts):
    load = Workload(PROJECT, "paper")
    load.scale = {**load.scale, "data": {**load.scale["data"], **limits}}
    assert load.images("svhn") == counts


def test_images_of_a_prepared_file_are_read_from_its_header(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({f"{split}.images": torch.zeros(n, 2, 2, 3) for split, n in (("train", 7), ("test", 3))}, path)
    assert prepared_images(path) == {"train": 7, "val": 0, "test": 3}
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=f"{path}: not a prepared data set"):
        prepared_images(path)
