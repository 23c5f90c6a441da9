"""Which epoch is kept: of a net with a router by the per-example worst of both gradients, else by the one there is."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from moat.attacks import resolve
from moat.base.errors import ConfigError, TrainingError
from moat.data.datasets import Split
from moat.methods.base import Method
from moat.training.checkpoint import Checkpoints
from moat.training.engine import Engine

FGSM = {"attack": "fgsm", "eps": 0.2}
# One pixel an image, all of class 1, with the threshold at 0.5.
PIXELS = (0.55, 0.65, 0.75, 0.9)
# The net after each epoch: the threshold, how far above it the expert's slope ends, where the router's score is lowest
# and how steep it is. Then the fraction of images that withstand FGSM by the full gradient, by the gradient without the
# router's part, and by both.
EPOCHS = [
    # The score falls with the pixel, and drags the full gradient away from the threshold.
    ((0.5, 1.0, 1.0, 40.0), (1.0, 0.5, 0.5)),
    # Each gradient misleads at another image.
    ((0.5, 0.1, 0.6, 40.0), (0.75, 0.75, 0.5)),
    # No router to mislead anything.
    ((0.4, 1.0, 0.5, 0.0), (0.75, 0.75, 0.75)),
    # Only the router decides: without it there is no gradient.
    ((0.5, 0.01, 0.0, 40.0), (0.5, 1.0, 0.5)),
]
NAMES = ("validation_accuracy_straight_through", "validation_accuracy_detached", "validation_accuracy")
RECIPE = {
    "epochs": len(EPOCHS),
    "batch_size": 2,
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
    "schedule": {"name": "constant"},
    "validation": {"setting": "fgsm", "every": 1},
}


class Score(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("lowest", "slope"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return self.slope * (x.double().flatten() - self.lowest).abs() - 40


class OnePixelMixture(nn.Module):
    """F(x) = w(x) (0, min(x - threshold, end)), with the weight w = sigmoid(score(x)) of its only expert."""

    def __init__(self, score: nn.Module):
        super().__init__()
        self.router = score
        self.unused = nn.Parameter(torch.zeros(()))
        for name in ("threshold", "end"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        weight = torch.sigmoid(self.router(x))
        margin = weight * torch.minimum(x.double().flatten() - self.threshold, self.end)
        return torch.stack([torch.zeros_like(margin), margin], 1)


class Scripted(Method):
    """Sets the net as EPOCHS says; optionally stopped in the middle of an epoch."""

    stop_in = None

    def update(self, x, y, step):
        if step.epoch == self.stop_in:
            raise TrainingError("stopped by the test")
        threshold, end, lowest, slope = EPOCHS[step.epoch][0]
        self.model.threshold.fill_(threshold), self.model.end.fill_(end)
        score = getattr(self.model, "router", None) or self.model.score
        score.lowest.fill_(lowest), score.slope.fill_(slope)
        return {"loss": self.model.unused.detach()}


def train(folder, *, model=None, attack=FGSM, every=1, stop_in=None) -> Engine:
    images = torch.tensor(PIXELS).mul(255).round().to(torch.uint8).view(-1, 1, 1, 1)
    split = Split(images, torch.ones(len(images), dtype=torch.int64))
    recipe = {**RECIPE, "validation": {"setting": "setting", "every": every}}
    method = Scripted(model or OnePixelMixture(Score()), recipe)
    method.stop_in = stop_in
    engine = Engine(
        method,
        name="scripted",
        recipe=recipe,
        seed=0,
        train=split,
        validation=replace(split),
        augment={"crop_padding": 0, "flip": False},
        validation_attack=attack,
        checkpoints=Checkpoints(folder),
        identity={"run": "this"},
        device=torch.device("cpu"),
    )
    engine.train()
    return engine


def test_the_epoch_is_chosen_by_the_worst_of_both_gradients(tmp_path):
    engine = train(tmp_path)
    assert [tuple(row[name] for name in NAMES) for row in engine.history] == [expected for _, expected in EPOCHS]
    # By the full gradient alone it would be the first epoch, without the router's part the fourth, and by the lower of
    # the two accuracies the second.
    assert (engine.best_epoch, engine.best_accuracy) == (3, 0.75)
    assert float(engine.best_state["threshold"]) == pytest.approx(0.4)


@pytest.mark.brief(keep=lambda case: case["stop_in"] == 2)
@pytest.mark.parametrize("stop_in", [1, 2, 3])
def test_a_run_that_is_resumed_chooses_the_same_epoch(tmp_path, stop_in):
    with pytest.raises(TrainingError, match="stopped by the test"):
        train(tmp_path / "stopped", stop_in=stop_in)
    resumed, whole = train(tmp_path / "stopped"), train(tmp_path / "whole")
    times = ("train_seconds", "seconds")
    histories = [
        [{name: value for name, value in row.items() if name not in times} for row in engine.history]
        for engine in (resumed, whole)
    ]
    assert histories[0] == histories[1]
    assert (resumed.best_epoch, resumed.best_accuracy) == (whole.best_epoch, whole.best_accuracy) == (3, 0.75)


class Unrouted(OnePixelMixture):
    """The same function, whose score is no module called router."""

    def __init__(self, score):
        super().__init__(score)
        del self.router
        self.score = score

    def forward(self, x):
        self.__dict__["router"] = self.score
        try:
            return super().forward(x)
        finally:
            del self.__dict__["router"]


@pytest.mark.parametrize(
    ("case", "options", "accuracies", "best"),
    [
        ("a net without a router", {"model": Unrouted(Score())}, [row[1][0] for row in EPOCHS], 1),
        ("a setting that attacks nothing", {"attack": {"attack": "none"}}, [1.0] * 4, 1),
        (
            "a setting with a view of its own",
            {"attack": {**FGSM, "view": "detached"}},
            [row[1][1] for row in EPOCHS],
            4,
        ),
    ],
)
def test_where_there_is_one_gradient_there_is_one_column(tmp_path, case, options, accuracies, best):
    engine = train(tmp_path, **options)
    assert [row["validation_accuracy"] for row in engine.history] == accuracies, case
    assert engine.best_epoch == best
    assert {name for row in engine.history for name in row if name.startswith("validation")} == {"validation_accuracy"}


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({**FGSM, "view": "detached", "requires": "router"}, "the model has no router"),
        ({**FGSM, "view": "detached"}, "the model has no view 'detached'"),
        ({**FGSM, "requires": "experts"}, "the model has no experts and no router that are known"),
    ],
)
def test_a_setting_that_does_not_apply_to_the_net_is_refused_before_the_training(tmp_path, attack, said):
    with pytest.raises(ConfigError, match=f"method scripted: validation.setting 'setting': {said}"):
        train(tmp_path, model=Unrouted(Score()), attack=attack)


def test_only_every_so_many_epochs_and_the_last_are_validated(tmp_path):
    engine = train(tmp_path, every=3)
    assert [row["epoch"] for row in engine.history if NAMES[0] in row] == [3, 4]
    assert engine.best_epoch == 3


def test_methods_that_ask_for_an_accuracy_get_the_worst_one(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Scripted, "end_epoch", lambda self, epoch, accuracy: {"asked": accuracy(self.asks)}, raising=False
    )
    monkeypatch.setattr(Scripted, "asks", resolve("fgsm", FGSM), raising=False)
    assert [row["asked"] for row in train(tmp_path).history] == [expected[2] for _, expected in EPOCHS]
