"""Anybody's model in ``evaluate`` and ``verify`` from Python: honest ones are measured, others end in one line."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from moat import attacks
from moat.attacks import resolve
from moat.attacks.autoattack import local_graph
from moat.attacks.parts.flags import collect
from moat.base.errors import DataError
from moat.evaluation import evaluate, verify
from moat.evaluation.doubts import find_doubts
from moat.evaluation.evidence import Budget
from moat.evaluation.plan import make_plan
from moat.evaluation.target import EvaluationTarget
from moat.models import nets
from moat.models.guard import guarded

EPS = "8/255"
CLEAN, SQUARE = {"attack": "none"}, {"attack": "square", "eps": EPS, "n_queries": 200}
PGD = {"attack": "pgd", "eps": EPS, "step_size": "2/255", "steps": 5}
SMALL_AA = {"attack": "autoattack", "eps": EPS, "n_iter": 5, "n_targets": 2, "n_queries": 50, "batch_size": 24}


class Elsewhere(nn.Module):
    """Somebody's classifier of images (B, channels, side, side)."""

    def __init__(self, forward=lambda net, x: net(x), channels=1, side=8, classes=10):
        super().__init__()
        torch.manual_seed(0)
        convolutions = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.net = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(8 * side * side, classes))
        self.answer = forward

    def forward(self, x):
        return self.answer(self.net, x)


@pytest.fixture(scope="module")
def labelled():
    """24 images (24, 1, 8, 8), and what the net makes of them: an untrained net is right about its own labels."""
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, Elsewhere().eval()((x - 0.5) / 0.25).argmax(1)


def outside(net, x):
    return net((x - 0.5) / 0.25)


IN_PLACE = {
    "methods": lambda net, x: net(x.sub_(0.5).div_(0.25)),
    "assignments": lambda net, x: _normalise(net, x),
    "out": lambda net, x: net(torch.div(torch.sub(x, 0.5, out=x) if not x.requires_grad else x - 0.5, 0.25)),
}


def _normalise(net, x):
    x -= 0.5
    x /= 0.25
    return net(x)


@pytest.mark.brief(keep=lambda case: case["inside"] is IN_PLACE["methods"])
@pytest.mark.parametrize("inside", IN_PLACE.values(), ids=IN_PLACE)
def test_a_model_that_changes_its_input_has_the_numbers_of_one_that_does_not(labelled, inside):
    x, y = labelled
    before, settings = x.clone(), {"clean": CLEAN, "square": SQUARE, "pgd": PGD, "aa": SMALL_AA}
    rows, expected = (
        evaluate(Elsewhere(answer), x, y, settings, batch_size=24, worst_case={"worst": settings | {"own": PGD}})
        for answer in (inside, outside)
    )
    assert torch.equal(x, before)
    same = ["setting", "index", "predicted", "correct", "misclassified_by"]
    assert rows[same].equals(expected[same])
    assert rows.loc[rows["setting"] == "clean", "linf"].eq(0).all() and rows["linf"].max() <= 8 / 255 + 1e-6
    assert rows.loc[rows["setting"] == "clean", "correct"].all() and not rows["correct"].all()


@pytest.mark.parametrize("attack", ["fgsm", "bim", "pgd", "cw_inf", "cw_l2", "square", "autoattack", "pgd_targeted"])
def test_an_attack_called_by_itself_guards_the_model_too(labelled, attack):
    x, y = labelled
    options = {
        "fgsm": {"eps": 8 / 255},
        "cw_l2": {"steps": 3},
        "square": {"eps": 8 / 255, "n_queries": 20},
        "autoattack": {key: value for key, value in SMALL_AA.items() if key != "attack"} | {"eps": 8 / 255},
    }.get(attack, {"eps": 8 / 255, "step_size": 2 / 255, "steps": 3})
    x_last = x.to(memory_format=torch.channels_last)
    found = [
        attacks.get(attack)(Elsewhere(answer), images, y, **options)
        for answer, images in ((outside, x), (IN_PLACE["methods"], x), (IN_PLACE["methods"], x_last.clone()))
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    if attack != "cw_l2":
        assert (found[1] - x).abs().max() <= 8 / 255 + 1e-6


def test_moats_own_models_that_change_their_input_are_refused(labelled):
    model = nets.build("lenet5", 10, image_size=16, in_channels=1, normalize=None)
    model.forward = lambda x: x.sub_(0.5).flatten(1)[:, :10]
    x = torch.rand(4, 1, 16, 16)
    with pytest.raises(DataError, match="the model changes its input, in place; let it work on a copy"):
        evaluate(model, x, torch.zeros(4, dtype=torch.long), {"clean": CLEAN}, batch_size=2)


VIEWS = {
    "of the images": lambda net, x: net[2](net[0](x.view(len(x), -1).view(x.shape)).flatten(1)),
    "of a map": lambda net, x: net[2](net[0](x).view(len(x), -1)),
}


@pytest.mark.long
@pytest.mark.parametrize("answer", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_view_works(answer, channels):
    x = torch.rand(24, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    model, plain = Elsewhere(answer, channels=channels), Elsewhere(channels=channels)
    y = plain.eval()(x).argmax(1)
    settings = {"clean": CLEAN, "pgd": PGD, "square": SQUARE, "aa": SMALL_AA}
    for images in (x, x.to(memory_format=torch.channels_last)):
        rows = evaluate(model, images, y, settings, batch_size=10)
        assert rows.loc[rows["setting"] == "clean", "correct"].all() and not rows["correct"].all()
    bytes_ = (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1)
    report = verify(model, bytes_[:6], y[:6], budget=Budget(steps=2, queries=5))
    assert report.n == 6


def no_grad(net, x):
    with torch.no_grad():
        return net(x)


WITHOUT_GRADIENT = {
    "no_grad": no_grad,
    "detached": lambda net, x: net(x.detach()),
    "numpy": lambda net, x: net(torch.from_numpy(x.detach().cpu().numpy().copy())),
    "rounding": lambda net, x: net(torch.round(x * 4) / 4),
}
ALL_ATTACKS = {
    "clean": CLEAN,
    "fgsm": {"attack": "fgsm", "eps": EPS},
    "pgd": PGD,
    "margin": {**PGD, "loss": "margin", "restarts": 2},
    "bim": {**PGD, "attack": "bim"},
    "cw_inf": {**PGD, "attack": "cw_inf"},
    "cw_l2": {"attack": "cw_l2", "steps": 3},
    "targeted": {**PGD, "attack": "pgd_targeted"},
    "square": SQUARE,
    "aa": SMALL_AA,
}


@pytest.mark.brief(keep=lambda case: case["answer"] is WITHOUT_GRADIENT["no_grad"])
@pytest.mark.parametrize("answer", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT)
def test_without_a_gradient_every_attack_runs_and_square_finds_the_rest(answer):
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Elsewhere(answer)
    y = model.eval()(x.clone()).argmax(1)
    rows = evaluate(model, x, y, ALL_ATTACKS, batch_size=24)
    correct = rows.groupby("setting")["correct"].sum()
    assert correct["clean"] == 24 and correct["fgsm"] == 24 or answer is WITHOUT_GRADIENT["rounding"]
    assert correct["square"] < 24 and correct["aa"] < 24
    by = rows.loc[(rows["setting"] == "aa") & ~rows["correct"], "misclassified_by"]
    assert "square" in set(by)
    with collect() as flags:
        resolve("aa", SMALL_AA)(model, x, y)
    assert {"zero-gradient", "square-stronger"} <= set(flags)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda net, x: net[2](net[0](x).flatten(1).squeeze()),
            r"^Elsewhere: given images float32 \(1, 1, 8, 8\) in .*, the model returns \(10,\); logits \(1, classes\)",
        ),
        (
            lambda net, x: net(x).squeeze(),
            r"given images float32 \(1, 1, 8, 8\) in \[0, 1\], the model returns \(10,\)",
        ),
        (lambda net, x: (net(x),), "returns a tuple; logits"),
        (lambda net, x: {"out": net(x)}, "returns a dict; logits"),
        (lambda net, x: [net(x)], "returns a list; logits"),
        (lambda net, x: net(x).detach().numpy(), "returns a ndarray; logits"),
        (lambda net, x: net(x)[..., None, None], r"returns \(2, 10, 1, 1\); logits \(2, classes\) are needed"),
        (lambda net, x: net(x)[:, :1], r"returns \(2, 1\); at least 2 classes are needed"),
        (lambda net, x: exec("raise SystemExit(0)"), r"ends Python \(sys.exit\(0\)\)"),
    ],
    ids=["squeezed map", "squeezed", "tuple", "dict", "list", "numpy", "4-d", "one logit", "exit"],
)
@pytest.mark.parametrize("measure", ["evaluate", "verify"])
def test_other_outputs_are_one_line(labelled, answer, words, measure):
    x = labelled[0]
    y = torch.zeros(24, dtype=torch.long)
    with pytest.raises(DataError, match=words):
        if measure == "evaluate":
            evaluate(Elsewhere(answer), x, y, {"clean": CLEAN, "aa": SMALL_AA}, batch_size=24)
        else:
            verify(Elsewhere(answer), x, y)


@pytest.mark.parametrize(("logits", "label"), [([0, 1e-8, 0], 1), ([-1e-9, 0, -1e-9], 1)])
def test_the_prediction_is_the_argmax_of_the_logits(logits, label):
    model = Elsewhere(lambda net, x: torch.tensor(logits).repeat(len(x), 1))
    rows = evaluate(model, torch.rand(3, 1, 8, 8), torch.full((3,), label), {"clean": CLEAN}, batch_size=3)
    assert rows["predicted"].tolist() == [label] * 3 and rows["correct"].all()


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaled_logits_change_no_verdict(labelled, scale):
    x, y = labelled
    rows = evaluate(Elsewhere(lambda net, x: outside(net, x) * scale), x, y, {"clean": CLEAN}, batch_size=24)
    assert rows["correct"].all()


LABELS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.int64)


@pytest.mark.brief(keep=lambda case: case["name"] != "aa" or case["dtype"] is torch.int32)
@pytest.mark.parametrize("dtype", LABELS, ids=str)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw_inf", "cw_l2", "square", "aa"])
def test_attacks_take_labels_of_any_whole_type(labelled, name, dtype):
    x, y = labelled
    attack = resolve(name, ALL_ATTACKS[name] | ({"n_queries": 10} if "n_queries" in ALL_ATTACKS[name] else {}))
    found = [attack(Elsewhere(outside), x, each, torch.Generator().manual_seed(0)) for each in (y, y.to(dtype))]
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw_inf", "square", "aa"])
def test_attacks_take_images_and_models_of_any_floating_type(labelled, name, dtype):
    x, y = labelled
    model, x = Elsewhere(outside).to(dtype), x.to(dtype)
    found = resolve(name, ALL_ATTACKS[name])(model, x, y, torch.Generator().manual_seed(0))
    assert found.dtype == dtype and 0 < (found - x).abs().max() <= 8 / 255 + 0.01


def test_arrays_of_any_layout(labelled):
    x, y = labelled
    expected = evaluate(Elsewhere(outside), x, y, {"clean": CLEAN, "pgd": PGD}, batch_size=24)
    flipped = np.ascontiguousarray(x.numpy()[:, :, ::-1])[:, :, ::-1]
    assert flipped.strides[2] < 0
    for images in (flipped, x.numpy().astype(">f4"), x.numpy().astype(">f8"), x.numpy().tolist()):
        for labels in (y.numpy().astype(np.uint64), y.numpy().astype(">i2"), y.numpy()[::-1].copy()[::-1], y.tolist()):
            rows = evaluate(Elsewhere(outside), images, labels, {"clean": CLEAN, "pgd": PGD}, batch_size=24)
            assert rows["predicted"].equals(expected["predicted"])
    for wrong in (np.array(["0"] * 24), [[0], [1, 2]], None):
        with pytest.raises(DataError, match="^labels"):
            evaluate(Elsewhere(outside), x, wrong, {"clean": CLEAN}, batch_size=24)


def test_torchscript(labelled):
    x, y = labelled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(Elsewhere(outside).eval(), x[:2])
    expected = evaluate(Elsewhere(outside), x, y, {"clean": CLEAN, "pgd": PGD}, batch_size=24)
    rows = evaluate(script, x, y, {"clean": CLEAN, "pgd": PGD}, batch_size=24)
    assert rows["predicted"].equals(expected["predicted"])
    assert verify(script, x[:6], y[:6], budget=Budget(steps=2, queries=5)).n == 6


@pytest.mark.parametrize("measure", ["evaluate", "verify"])
def test_a_model_that_fails_only_with_a_gradient_is_one_line(labelled, measure):
    x, y = labelled
    model = Elsewhere(lambda net, x: net(torch.from_numpy(x.numpy())))
    with pytest.raises(
        DataError, match=r"\(24, 1, 8, 8\) in \[0, 1\], the model fails \(RuntimeError: Can't call numpy"
    ):
        if measure == "evaluate":
            evaluate(model, x, y, {"clean": CLEAN, "pgd": PGD}, batch_size=24)
        else:
            verify(model, x, y)


def test_a_copy_that_cannot_be_made_is_told_once(labelled, caplog):
    x, y = labelled
    verify(
        Elsewhere(VIEWS["of a map"], channels=3), x[:6].expand(-1, 3, -1, -1), y[:6], budget=Budget(steps=2, queries=5)
    )
    told = [record.message for record in caplog.records if "attacked as it is" in record.message]
    assert told == ["the model's fast copy has other logits; it is attacked as it is"]


def doubts(model, correct, classes=10):
    """What is said of 64 images, so many of which are correct: setting -> number."""
    settings = {"clean": CLEAN, "pgd10": {**PGD, "steps": 10}, "square": SQUARE}
    plan = make_plan("quick", {name: settings[name] for name in correct}, {}, model, {})
    parts = [
        pd.DataFrame({"setting": name, "index": range(64), "correct": np.arange(64) < number})
        for name, number in correct.items()
    ]
    x = torch.randint(0, 256, (64, 8, 8, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    names = [str(number) for number in range(classes)]
    data = {
        "indices": list(range(64)),
        "classes": names,
        "data_path": Path("digits"),
        "data_sha256": "",
        "batch_size": 64,
    }
    target = EvaluationTarget(model=model, run={}, x=x, y=torch.arange(64) % min(classes, 10), **data)
    return find_doubts(target, plan, pd.concat(parts))


ZERO = "the gradient is zero for 64 of 64 images: pgd10 cannot attack this model; run moat verify"
ABOVE = (
    "more images are correct under attack (pgd10 98.44%) than without (93.75%): "
    "the attack does not work on this model; run moat verify"
)
CHANCE = (
    "the clean accuracy, 9.38%, is at chance (10.00%): are the normalisation, the range of pixels (here [0, 1]) "
    "and the order of the labels those of the training?"
)
OUTPUTS = "the model has 1000 outputs, the data 10 classes: are the labels the same?"
PROBABILITIES = "the model returns probabilities, not logits: gradients vanish; leave out the softmax"


@pytest.mark.parametrize(
    ("answer", "correct", "said"),
    [
        (no_grad, {"clean": 62, "pgd10": 62}, [ZERO]),
        (WITHOUT_GRADIENT["rounding"], {"clean": 60, "pgd10": 63}, [ZERO, ABOVE]),
        (outside, {"clean": 6, "pgd10": 0}, [CHANCE]),
        (lambda net, x: net(x).softmax(1), {"clean": 53, "pgd10": 9}, [PROBABILITIES]),
        (lambda net, x: net(x).repeat(1, 100), {"clean": 50, "pgd10": 0}, [OUTPUTS]),
        (outside, {"clean": 62, "pgd10": 62, "square": 62}, []),
        (lambda net, x: net(x).log_softmax(1), {"clean": 62, "pgd10": 0}, []),
        (no_grad, {"clean": 62, "square": 5}, []),
    ],
    ids=["no gradient", "rounding", "0 to 255", "softmax", "1000 outputs", "robust", "log-softmax", "only square"],
)
def test_what_plainly_did_not_work(answer, correct, said):
    assert list(doubts(guarded(Elsewhere(answer).eval()), correct).values()) == said


class Writes(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.conv, self.write = nn.Conv2d(1, 4, 3, padding=1), write

    def forward(self, x):
        return self.write(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("write", "traced"),
    [
        (lambda z: z.mul(2), True),
        (lambda z: nn.functional.relu(z, inplace=True), True),
        (lambda z: z.mul_(2), False),
        (lambda z: torch.relu_(z), False),
        (lambda z: nn.functional.leaky_relu(z, inplace=True), False),
        (lambda z: torch.mul(z, 2, out=z), False),
    ],
    ids=["mul", "relu", "mul_", "relu_", "leaky_relu", "out"],
)
def test_square_computes_patches_only_of_nets_that_do_not_write_to_maps(write, traced):
    assert (local_graph.local_graph(Writes(write)) is not None) == traced
