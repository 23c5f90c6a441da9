"""The engine: what it writes, how it chooses, and how it stops."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch
import yaml

import moat.methods
from moat import models
from moat.base.errors import DataError, MoatError, TrainingError
from moat.base.files import hash_file
from moat.commands.cli import main
from moat.data import datasets
from moat.methods.base import Method, build_optimizer
from moat.methods.schedules import learning_rate_factor
from moat.methods.standard import Standard
from moat.training import engine
from moat.training.meters import Meter
from moat.training.models import load_model
from moat.training.run_record import read_run


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "standard"
    assert prepared.train(out, method="standard") == 0
    return out


def test_run_json_says_where_the_weights_come_from(prepared, run):
    record = json.loads((run / "run.json").read_text())
    assert {key: record[key] for key in ("dataset", "arch", "method", "seed", "scale")} == {
        "dataset": "digits", "arch": "lenet5", "method": "standard", "seed": 0, "scale": "tiny",
    }  # fmt: skip
    assert record["model_sha256"] == hash_file(run / "model.safetensors")
    assert record["last_sha256"] == hash_file(run / "last.safetensors")
    assert record["data"]["sha256"] == hash_file(prepared.data)
    assert (record["data"]["train_images"], record["data"]["validation_images"]) == (200, 40)
    assert set(record["sources"]) == {"nets", "method", "attacks", "engine"}
    assert record["recipe"]["epochs"] == 4 and record["recipe"]["version"] == 1
    model = models.build("lenet5", 10, image_size=16)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    for key in (
        "images_per_second",
        "wall_seconds",
        "peak_memory_bytes",
        "cpu_seconds",
        "peak_host_memory_bytes",
        "macs_per_image",
    ):
        assert record[key] > 0
    assert {"torch", "python", "moat"} <= set(record["versions"])


def test_history_has_a_row_per_epoch_and_the_learning_rate_of_its_end(run):
    history = pd.read_csv(run / "history.csv")
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert list(history["images"]) == [200] * 4
    # Cosine from 0.02, 13 batches an epoch: the rate of an epoch's last batch.
    expected = [0.01 * (1 + math.cos(math.pi * (epoch + 12 / 13) / 4)) for epoch in range(4)]
    assert list(history["lr"]) == pytest.approx(expected)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_the_best_epoch_by_validation_is_kept_and_reproduces_its_accuracy(prepared, run):
    history, record = pd.read_csv(run / "history.csv"), read_run(run)
    best = history["validation_accuracy"].max()
    assert record["best_validation_accuracy"] == best
    assert record["best_epoch"] == history["epoch"][history["validation_accuracy"].idxmax()]
    held_out = datasets.load(prepared.data).splits["val"]
    x = held_out.images.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        accuracy = (load_model(run)(x).argmax(1) == held_out.labels).double().mean()
    assert float(accuracy) == pytest.approx(best)


@pytest.mark.parametrize("space", ["pixel", "normalised_noclip"])
def test_validation_attacks_where_the_training_does(tiny, tmp_path, monkeypatch, space):
    """With a radius that leaves [0,1] where nothing cuts it off."""
    scored, validate = [], engine.Engine.validate

    def watched(self, attack):
        model = self.weights()
        hook = model.register_forward_pre_hook(lambda module, given: scored.append(given[0]))
        found = validate(self, attack)
        hook.remove()
        return found

    monkeypatch.setattr(engine.Engine, "validate", watched)
    tiny.change(epochs=1, attack_space={"name": space}, validation={"setting": "pgd10_e64"})
    assert tiny.train(tmp_path / "run", method="pgd-at") == 0
    assert scored and bool(torch.stack([images.min() for images in scored]).min() < -0.01) is (space != "pixel")


def test_the_held_out_images_are_not_trained_on(prepared):
    data = datasets.load(prepared.data)
    train, held_out, test = (
        {bytes(image.numpy().tobytes()) for image in data.splits[name].images} for name in ("train", "val", "test")
    )
    assert not train & held_out and not train & test


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("run.json", None, "no such file; `moat train"),
        (
            "model.safetensors",
            None,
            r"no such file; weights are not in git. `moat pull` gets .*; `moat train --dataset digits --arch \w+ "
            r"--method \S+ --seed 0 --scale \w+ --out \S+` trains again",
        ),
        ("model.safetensors", lambda content: content[:-1] + b"x", "the content is not that of run.json"),
        ("run.json", lambda content: b"{", "not valid JSON"),
        ("run.json", lambda content: b"{}", "is no record of a finished run: 'dataset' is missing"),
    ],
)
def test_a_damaged_run_is_refused_by_name(run, tmp_path, file, spoil, said):
    for path in run.iterdir():
        if path.name != file:
            (tmp_path / path.name).write_bytes(path.read_bytes())
        elif spoil is not None:
            (tmp_path / path.name).write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=said) as error:
        load_model(tmp_path)
    assert file in str(error.value)


@pytest.mark.brief(keep=lambda case: case["method"] != "trades")
@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("standard", "method standard: the loss is nan at epoch 3, batch 6"),
        # Here the attack notices first.
        ("pgd-at", "method pgd-at, epoch 3, batch 6: "),
        ("trades", "method trades, epoch 3, batch 6: "),
    ],
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tiny, tmp_path, capsys, monkeypatch, method, said
):
    out, real = tmp_path / "run", engine.Engine._set_learning_rates

    def poison(self, step):
        real(self, step)
        if (step.epoch, step.batch) == (2, 5):
            with torch.no_grad():
                next(self.method.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(engine.Engine, "_set_learning_rates", poison)
    assert tiny.train(out, method=method) == 1
    message = capsys.readouterr().err
    assert said in message and "The last good checkpoint is kept" in message
    assert not (out / "run.json").exists()
    kept = tiny.checkpoints(out).load()
    assert (kept["epoch"], kept["batch"]) == (2, 0)
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values())


@pytest.mark.brief(keep=lambda case: case["epoch"] == 1)
@pytest.mark.parametrize(("epoch", "kept"), [(0, None), (1, 1), (3, 3)])
def test_weights_that_are_not_finite_after_an_update_stop_too(tiny, tmp_path, capsys, monkeypatch, epoch, kept):
    """The loss of a batch is from before its update: the last batch's damage shows in the weights alone."""
    out, real = tmp_path / "run", Standard.update

    def poison(self, x, y, step):
        metrics = real(self, x, y, step)
        if (step.epoch, step.batch) == (epoch, step.batches - 1):
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("inf"))
        return metrics

    monkeypatch.setattr(Standard, "update", poison)
    assert tiny.train(out, method="standard") == 1
    assert f"method standard, epoch {epoch + 1}, batch 13: a weight is not finite" in capsys.readouterr().err
    assert not (out / "run.json").exists()
    state = tiny.checkpoints(out).load()
    assert (state and state["epoch"]) == kept


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_meter_names_the_first_bad_batch(value):
    meter = Meter()
    for batch, loss in enumerate([1.0, 2.0, value, 1.0]):
        meter.add(batch, 4, {"loss": torch.tensor(loss)})
    with pytest.raises(TrainingError, match=r"method trades: the loss is -?(nan|inf) at epoch 8, batch 3"):
        meter.check("trades", 7)


def test_the_meter_weights_by_samples():
    meter = Meter()
    meter.add(0, 3, {"loss": torch.tensor(1.0)})
    meter.add(1, 1, {"loss": torch.tensor(5.0)})
    assert meter.means() == {"loss": 2.0}


@pytest.mark.parametrize(
    ("schedule", "at", "factor"),
    [
        ({"name": "cosine"}, 0.0, 1.0),
        ({"name": "cosine"}, 0.5, 0.5),
        ({"name": "cosine"}, 1.0, 0.0),
        ({"name": "constant"}, 0.9, 1.0),
        ({"name": "step", "milestones": [0.5, 0.75]}, 0.49, 1.0),
        ({"name": "step", "milestones": [0.5, 0.75]}, 0.5, 0.1),
        ({"name": "step", "milestones": [0.5, 0.75], "factor": 0.5}, 0.8, 0.25),
        ({"name": "constant", "warmup": 0.1}, 0.05, 0.5),
        ({"name": "constant", "warmup": 0.1}, 0.2, 1.0),
    ],
)
def test_schedules(schedule, at, factor):
    assert learning_rate_factor(schedule, at) == pytest.approx(factor)


def test_a_method_is_told_of_epochs_and_its_state_survives_a_stop(tiny, tmp_path, monkeypatch):
    """What hybrid, SoE and the pruning stages need: hooks per epoch, validation on demand, state, own rates."""
    from moat.attacks import resolve

    class Counting(Standard):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.begun, self.total = [], 0.0

        def begin_epoch(self, epoch):
            self.begun.append(epoch)

        def learning_rate(self, optimizer, step):
            return 0.001 * (step.epoch + 1)

        def end_epoch(self, epoch, accuracy):
            self.total += accuracy(resolve("clean", {"attack": "none"}))
            return {"total": self.total}

        def state_dict(self):
            return {"total": self.total}

        def load_state_dict(self, state):
            self.total = state["total"]

    monkeypatch.setattr("moat.methods.get", lambda name: Counting)
    assert tiny.train(tmp_path / "whole", method="standard") == 0
    whole = pd.read_csv(tmp_path / "whole" / "history.csv")
    assert list(whole["lr"]) == pytest.approx([0.001, 0.002, 0.003, 0.004])
    assert list(whole["total"]) == pytest.approx(list(whole["validation_accuracy"].cumsum()))

    with monkeypatch.context() as patch:
        patch.setattr(Counting, "update", _raising_from_epoch(2, Counting.update))
        assert tiny.train(tmp_path / "cut", method="standard") == 1
    assert tiny.train(tmp_path / "cut", method="standard") == 0
    cut = pd.read_csv(tmp_path / "cut" / "history.csv")
    times = ["train_seconds", "seconds"]
    assert cut.drop(columns=times).equals(whole.drop(columns=times))


def _raising_from_epoch(epoch, update):
    def raising(self, x, y, step):
        if step.epoch >= epoch:
            raise MoatError("stopped by the test")
        return update(self, x, y, step)

    return raising


CONTINUED = """
from moat.methods.standard import Standard
from moat.training.models import load_model


class Continued(Standard):
    PARAMETERS = {"initialize_from": {"type": "runs", "description": "where the weights come from"}}
    calls = []

    def initialize(self, runs):
        self.calls.append(dict(runs))
        self.model.load_state_dict(load_model(runs["first"]).state_dict())

    def learning_rate(self, optimizer, step):
        return 0.0


METHOD = Continued
"""
CONTINUED_RECIPE = {
    "title": "continued",
    "class": "continued",
    "extends": "standard",
    "ema": 0.5,
    "initialize_from": [{"name": "first", "method": "pgd-at"}],
}


def test_a_run_starts_from_the_runs_given_to_initialize_and_loads_without_them(tiny, tmp_path):
    """The first run's weights are read when training begins, not when the trained model is loaded."""
    plugin = tiny.root / "plugins" / "methods" / "continued.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(CONTINUED)
    (tiny.root / "config" / "methods" / "continued.yaml").write_text(yaml.safe_dump(CONTINUED_RECIPE))
    first, second = tmp_path / "first", tmp_path / "second"
    assert tiny.train(first, method="standard") == 0
    assert main([*tiny.arguments(second, method="continued"), "--initialize-from", f"first={first}"]) == 0
    calls = moat.methods.get("continued").calls
    assert calls == [{"first": first}]
    expected = load_model(first).state_dict()
    shutil.rmtree(first)
    for weights in ("best", "last"):
        # The moving average, too, started from these weights.
        assert all(torch.equal(expected[key], value) for key, value in load_model(second, weights).state_dict().items())
    assert calls == [{"first": first}]


@pytest.mark.long
def test_seconds_add_up_over_checkpoints_and_stops(tiny, tmp_path, monkeypatch):
    """Each look at the clock is a second later than the one before: every second must be counted once."""
    ticks = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(engine.time, "monotonic", lambda: float(next(ticks)))
        patch.setattr(engine, "CHECKPOINT_EVERY_SECONDS", 5.0)
        assert tiny.train(tmp_path / "run", method="standard") == 0
    history, record = pd.read_csv(tmp_path / "run" / "history.csv"), read_run(tmp_path / "run")
    # 13 batches, each with a look at the clock, and more for checkpoints.
    assert (history["train_seconds"] >= 13).all()
    assert (history["seconds"] > history["train_seconds"]).all()
    assert record["wall_seconds"] >= history["seconds"].sum()
    assert record["images_per_second"] == pytest.approx(800 / history["train_seconds"].sum(), abs=0.1)


def test_the_folder_of_another_run_is_not_overwritten(prepared, run, capsys):
    before = hash_file(run / "run.json")
    assert prepared.train(run, method="pgd-at") == 2
    assert "holds a finished run of method 'standard', this one has 'pgd-at'" in capsys.readouterr().err
    assert hash_file(run / "run.json") == before


def test_gradient_clipping_bounds_the_step():
    model = torch.nn.Linear(1, 1, bias=False)
    recipe = {"optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}, "gradient_clip": 0.25}
    before = model.weight.item()
    Method(model, recipe).minimize(1000 * model.weight.sum())
    assert before - model.weight.item() == pytest.approx(0.25, rel=1e-4)


def test_the_optimizer_is_sgd_with_the_recipes_numbers():
    options = {"name": "sgd", "lr": 0.3, "momentum": 0.8, "weight_decay": 1e-3, "nesterov": True}
    group = build_optimizer([torch.nn.Parameter(torch.zeros(1))], options).param_groups[0]
    assert {key: group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")} == {
        key: value for key, value in options.items() if key != "name"
    }


def test_a_moving_average_is_what_is_validated_and_kept(tiny, tmp_path):
    tiny.change(ema=0.9)
    assert tiny.train(tmp_path / "averaged", method="standard") == 0
    tiny.change(ema=None)
    assert tiny.train(tmp_path / "plain", method="standard") == 0
    averaged, plain = (load_model(tmp_path / name, "last").state_dict() for name in ("averaged", "plain"))
    assert averaged.keys() == plain.keys()
    assert not torch.equal(averaged["head.weight"], plain["head.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--initialize-from", "dense"], "--initialize-from dense: write NAME=DIR"),
        (["--initialize-from", "dense=x"], "the recipe starts from none"),
        (["--threads", "0"], "--threads 0: allowed: 1 to 1024"),
        (["--device", "gpu9"], "--device gpu9: allowed"),
        (["--device", "meta"], "--device meta: allowed"),
        (["--seed", "-1"], "--seed -1: allowed: 0 or more"),
        (["--dataset", "digit"], "unknown dataset 'digit' (did you mean 'digits'?)"),
        (["--out", "/proc/run"], "cannot be written here"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_line(prepared, tmp_path, capsys, change, said):
    assert main([*prepared.arguments(tmp_path / "run"), *change]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ["--dataset", "cifar10"], "holds the data set 'digits', the run needs 'cifar10'"),
        ({"image_size": 8}, [], "was prepared with image_size 16, scale tiny has 8"),
        ({"train_limit": 100}, [], "was prepared with train_limit 200, scale tiny has 100"),
    ],
)
def test_data_that_is_not_what_the_run_asks_for_is_exit_3(tiny, tmp_path, capsys, change, options, said):
    path = tiny.root / "config" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["data"].update(change)
    path.write_text(yaml.safe_dump(scale))
    assert main([*tiny.arguments(tmp_path / "run"), *options]) == 3
    assert said in capsys.readouterr().err


def test_missing_data_is_exit_3_and_named(prepared, tmp_path, capsys):
    assert main([*prepared.arguments(tmp_path / "run"), "--data", str(tmp_path / "absent.safetensors")]) == 3
    assert "absent.safetensors" in capsys.readouterr().err
