"""What every method owes the engine, for each one that is registered: `make test` tries one recipe of most classes."""

import contextlib
import json
import math
import shutil
import statistics
import sys

import pandas as pd
import pytest
import torch
from tiny_methods import ROOT, begin, distinct_recipes, set_rates, step_of

import moat.methods
from moat.attacks.parts import steps
from moat.base import plugins
from moat.base.errors import ConfigError, Interrupted
from moat.base.files import hash_file
from moat.config.project import Project
from moat.config.recipes import resolve_recipe, resolve_run
from moat.methods.base import Method
from moat.training import engine
from moat.training.models import load_model
from moat.training.run_record import read_run

METHODS = distinct_recipes()
# Class -> the recipe that stands for it: its namesake, or the first.
CLASSES = {Project(ROOT).method(name)["class"]: name for name in reversed(METHODS)}
CLASSES |= {name: name for name in CLASSES if name in METHODS}
one_of_each_class = pytest.mark.brief(keep=lambda case: case["name"] in CLASSES.values())
# Whole runs: of a method with state of its own; with routers and frozen experts they take long.
some_whole_runs = pytest.mark.brief(keep=lambda case: case["name"] == "hybrid")
# Phases in which the loss need not fall at this size, (method, epoch); each has a test of its own that says why.
OWN_TEST = {
    ("pgd-at-sparse", 0),
    # A gate over frozen experts that barely differ has nothing to learn: test_mixture_methods.py makes them differ.
    *((name, epoch) for name in ("dwf-frozen", "sramoe", "adaptive-smoothing") for epoch in (0, 1)),
    # Nothing is trained: test_fitted.py.
    *((name, epoch) for name in ("mixed-fixed", "mixednuts") for epoch in (0, 1)),
    *((f"blockmoe-switch-expert{e}", epoch) for e in range(4) for epoch in (0, 1)),
}
# The classes whose loss falls in tests of their own, in smaller nets: test_moe_methods.py, test_mixture_methods.py; or
# that train nothing, or two mixtures like another class's one.
MIXED = {
    *("advmoe", "dramoe", "pgd-at-moe", "dwf", "dwf-frozen", "sramoe", "soe", "mocse", "mocse-at"),
    *("mixed-fixed", "mixednuts", "adaptive-smoothing", "blockmoe-expert", "jtd-moe"),
}
# At its own learning rate the loss of two trained routers jumps for longer than a test lasts, on some processors.
RATES = {"blockmoe-switch": 0.03}
# Slower ones get more updates; two official recipes have a learning rate of 0.0001.
UPDATES = {"blockmoe-switch": 60, "jtd-moe-official": 120, "rt-er-official": 120}
# Recipe, epoch, updates.
FALLS = [(name, epoch, UPDATES.get(name, 30)) for name in METHODS for epoch in (0, 1) if (name, epoch) not in OWN_TEST]
# Another class attacks or minimizes as they do, and each has tests of its formulas.
SLOW = {"rt-er", "pgd-at-sparse", "fat-trades", "pgd-at-half", "dwf-expert-pgd", "dwf", "mocse-at", "hybrid"}
SLOW |= {"blockmoe-switch-expert0", "adaptive-smoothing", "jtd-moe", "dwf-frozen", "mixed-fixed"}
BRIEF = [(name, int((name, 0) in OWN_TEST), 16) for class_, name in CLASSES.items() if class_ not in MIXED]


def test_every_class_has_a_recipe_and_every_recipe_a_class():
    assert {Project(ROOT).method(name)["class"] for name in METHODS} == set(moat.methods.names())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no METHOD in it"),
        ("def trades(): ...", "there is no METHOD in it"),
        ("METHOD = 'trades'", "METHOD is 'trades'"),
    ],
)
def test_a_module_without_its_method_is_named(monkeypatch, tmp_path, text, said):
    plugin = tmp_path / "plugins" / "methods" / "my_method.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(text)
    monkeypatch.setattr(plugins, "_project", tmp_path)
    monkeypatch.delitem(sys.modules, "moat.methods.my_method", raising=False)
    for look in (moat.methods.get, lambda name: plugins.recipe_parameters(name, {})):
        with pytest.raises(ConfigError, match=rf"my_method.py: {said}; a method's module ends in `METHOD = <its cla"):
            look("my-method")


def test_every_recipe_says_where_it_comes_from():
    for name in METHODS:
        recipe = Project(ROOT).method(name)
        assert recipe["sources"], name
        cls = moat.methods.get(recipe["class"])
        assert issubclass(cls, Method) and cls.__doc__ and sys.modules[cls.__module__].__doc__, name


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_every_recipe_is_valid_at(scale):
    project = Project(ROOT)
    for name in METHODS:
        assert resolve_recipe(project, scale, name)["epochs"] >= 1, name
        run = resolve_run(project, scale, dataset="cifar10", arch="resnet18", method=name, seed=0)
        assert run["validation_attack"]["attack"], name
        starts = {start["method"] for start in run["recipe"].get("initialize_from", [])}
        assert starts <= set(project.names("methods")), name


@pytest.mark.brief(keep=lambda case: case["updates"] < 30 and case["name"] not in SLOW)
@pytest.mark.parametrize(("name", "epoch", "updates"), BRIEF + FALLS)
def test_its_loss_falls_on_a_fixed_batch(tiny, name, epoch, updates):
    """In the first and in the last epoch: methods of two phases train differently there."""
    method, (x, y) = tiny.method(name), tiny.batch()
    begin(method, epoch)
    losses = []
    for batch in range(updates):
        step = step_of(epoch, batch)
        set_rates(method, step, RATES.get(name, 1.0))
        metrics = method.update(x, y, step)
        assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
        losses.append(float(metrics["loss"]))
    assert all(map(math.isfinite, losses))
    # Medians: joint training of router and experts jumps once in a while on so small a batch, and falls all the same.
    assert statistics.median(losses[-updates // 3 :]) < 0.95 * statistics.median(losses[: updates // 6])


@one_of_each_class
@pytest.mark.brief(keep=lambda case: case["name"] not in SLOW)
@pytest.mark.parametrize("name", METHODS)
def test_its_attacks_leave_batch_norm_and_modes_alone(tiny, name, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def watched(model):
        before, modes = _buffers(model), [module.training for module in model.modules()]
        with original(model):
            assert not any(module.training for module in model.modules())
            yield
        after = _buffers(model)
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert modes == [module.training for module in model.modules()]
        entered.append(model)

    original = steps.frozen
    method, (x, y) = tiny.method(name), tiny.batch()
    for module in [module for key, module in sys.modules.items() if key.startswith("moat.")]:
        if getattr(module, "frozen", None) is original:
            monkeypatch.setattr(module, "frozen", watched)
    begin(method, 0)
    method.update(x, y, step_of(0, 0))
    assert entered or not any("attack" in key for key in method.recipe)


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_it_resumes_inside_an_epoch_to_the_bit(tiny, tmp_path, monkeypatch, name):
    """Stopped inside the first epoch and, resumed, inside the second; 64 images in batches of 16."""
    out, real = tmp_path / "run", engine.Engine._set_learning_rates
    for stop_at in ((0, 2), (1, 3)):

        def stop(self, step, stop_at=stop_at):
            if (step.epoch, step.batch) == stop_at:
                self.save()
                raise Interrupted("stopped by the test")
            real(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(engine.Engine, "_set_learning_rates", stop)
            with pytest.raises(Interrupted):
                tiny.train(name, out)
    tiny.train(name, out)
    assert _outcome(out) == _outcome(tiny.run(name))


@pytest.mark.parametrize("weights", ["best", "last"])
@some_whole_runs
@pytest.mark.parametrize("name", METHODS)
def test_its_model_is_loaded_from_its_own_files_alone(tiny, tmp_path, name, weights):
    """The runs that it started from may be gone."""
    out = tmp_path / "run"
    shutil.copytree(tiny.run(name), out)
    record = json.loads((out / "run.json").read_text())
    for start in record["initialize_from"].values():
        start["path"] = str(tmp_path / "gone")
    (out / "run.json").write_text(json.dumps(record))
    model = load_model(out, weights)
    assert not any(module.training for module in model.modules())
    x, _ = tiny.batch()
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (16, 10) and torch.isfinite(logits).all()
        torch.testing.assert_close(logits[:3], model(x[:3]), rtol=1e-4, atol=1e-5)
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@some_whole_runs
@pytest.mark.parametrize("name", METHODS)
def test_its_run_is_recorded(tiny, name):
    record, history = read_run(tiny.run(name)), pd.read_csv(tiny.run(name) / "history.csv")
    assert (record["method"], record["recipe"]["epochs"]) == (name, 2)
    assert {"nets", "method", "attacks", "engine"} == set(record["sources"])
    assert len(history) == 2 and history["loss"].notna().all() and (history["lr"] > 0).all()
    assert record["best_validation_accuracy"] == history["validation_accuracy"].max()


def _buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.named_buffers()}


def _outcome(out) -> tuple[str, str, str]:
    history = pd.read_csv(out / "history.csv").drop(columns=["train_seconds", "seconds"])
    return hash_file(out / "model.safetensors"), hash_file(out / "last.safetensors"), history.to_csv()
