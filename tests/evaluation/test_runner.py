"""Rows of an evaluation: what an attack claims counts for nothing, what the batch size is neither."""

import numpy as np
import pandas as pd
import pytest
import torch
from double import InDouble
from torch import nn

from moat.attacks.parts.setting import Attack
from moat.base.errors import ConfigError, DataError, MoatError
from moat.evaluation import evaluate
from moat.evaluation.runner import COLUMNS

CLEAN = {"attack": "none"}
FGSM = {"attack": "fgsm", "eps": "8/255"}
PGD = {"attack": "pgd", "eps": "8/255", "step_size": "2/255", "steps": 4}


def custom(function, eps=8 / 255, steps=3):
    return Attack(function, eps=eps, steps=steps, takes_generator=False)


def test_the_columns_and_rows(undefended, test_images):
    x, y = test_images
    frame = evaluate(undefended, x, y, {"clean": CLEAN, "fgsm": FGSM, "pgd": {**PGD, "steps": 10}}, batch_size=50)
    assert tuple(frame.columns) == COLUMNS
    assert frame["setting"].tolist() == ["clean"] * 120 + ["fgsm"] * 120 + ["pgd"] * 120
    assert frame["index"].tolist() == list(range(120)) * 3
    assert frame["label"].tolist() == y.tolist() * 3
    assert (frame["correct"] == (frame["predicted"] == frame["label"])).all()
    assert frame["confidence"].between(0.1, 1).all()
    by_setting = frame.groupby("setting", sort=False)
    assert frame["steps"].tolist() == [0] * 120 + [1] * 120 + [10] * 120
    assert by_setting["linf"].max().tolist() == pytest.approx([0, 8 / 255, 8 / 255], abs=1e-6)
    accuracy = by_setting["correct"].mean()
    assert accuracy["clean"] > accuracy["fgsm"] >= accuracy["pgd"]


def test_clean_rows_are_the_models_own_predictions(undefended, test_images):
    x, y = test_images
    frame = evaluate(undefended, x, y, {"clean": CLEAN}, batch_size=120)
    with torch.no_grad():
        confidence, predicted = undefended(x).softmax(1).max(1)
    assert frame["predicted"].tolist() == predicted.tolist()
    np.testing.assert_allclose(frame["confidence"], confidence.numpy(), rtol=1e-5)


def test_uint8_images_are_the_same_as_floats(undefended, test_images):
    x, y = test_images
    pixels = (x * 255).round().to(torch.uint8)
    as_bytes = evaluate(undefended, pixels.permute(0, 2, 3, 1).numpy(), y.numpy(), {"pgd": PGD}, batch_size=60)
    as_floats = evaluate(undefended, pixels.float() / 255, y, {"pgd": PGD}, batch_size=60)
    pd.testing.assert_frame_equal(as_bytes, as_floats)


def test_the_batch_size_does_not_matter(undefended, test_images):
    x, y = test_images
    settings = {"pgd": {**PGD, "restarts": 2}}
    large, small = (evaluate(InDouble(undefended), x, y, settings, batch_size=size) for size in (120, 7))
    columns = ["setting", "index", "label", "predicted", "correct", "steps"]
    pd.testing.assert_frame_equal(large[columns], small[columns])
    np.testing.assert_allclose(large["confidence"], small["confidence"], atol=1e-3)


def test_an_examples_rows_do_not_depend_on_the_others(undefended, test_images):
    x, y = test_images
    whole = evaluate(InDouble(undefended), x, y, {"pgd": PGD}, batch_size=120)
    part = evaluate(InDouble(undefended), x[40:60], y[40:60], {"pgd": PGD}, batch_size=120, indices=range(40, 60))
    rows = whole.iloc[40:60].reset_index(drop=True)
    assert part["index"].tolist() == rows["index"].tolist() == list(range(40, 60))
    np.testing.assert_allclose(part["confidence"], rows["confidence"], atol=1e-3)
    np.testing.assert_allclose(part["linf"], rows["linf"], atol=1e-6)


def test_seeds_and_setting_names_change_the_random_start(undefended, test_images):
    x, y = test_images
    start = {"attack": "pgd", "eps": 0.1, "step_size": 0, "steps": 1}

    def confidence(name, seed):
        return evaluate(undefended, x, y, {name: start}, batch_size=120, seed=seed)["confidence"].to_numpy()

    assert (confidence("a", 0) == confidence("a", 0)).all()
    assert (confidence("a", 0) != confidence("a", 1)).mean() > 0.5
    assert (confidence("a", 0) != confidence("b", 0)).mean() > 0.5


@pytest.mark.parametrize("eps", [8 / 255, None])
def test_a_result_outside_the_ball_is_projected_and_scored_there(eps, undefended, test_images):
    """An attack that claims the negative image is nothing but its nearest point in the ball."""
    x, y = test_images
    frame = evaluate(undefended, x, y, {"cheat": custom(lambda model, x, y: 1.5 - 2 * x, eps)}, batch_size=120)
    moved = (1.5 - 2 * x).clamp(0, 1) if eps is None else torch.clamp(1.5 - 2 * x, x - eps, x + eps).clamp(0, 1)
    with torch.no_grad():
        predicted = undefended(moved).argmax(1)
    assert frame["predicted"].tolist() == predicted.tolist()
    np.testing.assert_allclose(frame["linf"], (moved - x).abs().flatten(1).amax(1), atol=1e-6)
    assert frame["linf"].max() > 0.5 if eps is None else frame["linf"].max() <= 8 / 255 + 1e-6


def test_an_attack_cannot_move_the_ball_or_the_labels(undefended, test_images):
    def in_place(model, x, y):
        y.zero_()
        return x.zero_()

    x, y = test_images
    frame = evaluate(undefended, x, y, {"in place": custom(in_place)}, batch_size=120)
    assert frame["label"].tolist() == y.tolist()
    np.testing.assert_allclose(frame["linf"], x.flatten(1).amax(1).clamp(max=8 / 255), atol=1e-6)


def test_an_attack_cannot_leave_train_mode_behind(undefended, test_images):
    def careless(model, x, y):
        model.train()
        return x

    x, y = test_images
    frame = evaluate(undefended, x, y, {"clean": CLEAN, "careless": custom(careless)}, batch_size=120)
    clean, after = (part["confidence"].to_numpy() for _, part in frame.groupby("setting", sort=False))
    assert (clean == after).all() and not undefended.training


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda model, x, y: x[:, :, :8], ["mine", "shape"]),
        (lambda model, x, y: x / 0 * 0, ["mine", "not numbers"]),
    ],
)
def test_results_that_are_no_images(function, words, undefended, test_images):
    with pytest.raises(MoatError) as caught:
        evaluate(undefended, *test_images, {"mine": custom(function)}, batch_size=50)
    assert all(word in str(caught.value) for word in words)


def test_the_model_is_left_as_it_was(undefended, test_images):
    undefended.train()
    undefended.head.eval()
    before = {key: value.clone() for key, value in undefended.state_dict().items()}
    evaluate(undefended, *test_images, {"pgd": PGD}, batch_size=50)
    assert undefended.training and not undefended.head.training
    assert all(parameter.requires_grad for parameter in undefended.parameters())
    assert all(torch.equal(value, before[key]) for key, value in undefended.state_dict().items())
    undefended.eval()


def test_logits_that_are_no_numbers_are_never_correct(undefended, test_images):
    class Broken(nn.Module):
        def forward(self, x):
            return undefended(x) * torch.nan

    x, y = test_images
    frame = evaluate(Broken(), x, torch.zeros_like(y), {"clean": CLEAN}, batch_size=50)
    assert set(frame["predicted"]) == {-1} and not frame["correct"].any()


def test_experts_of_a_routed_model(undefended, test_images):
    class Routed(nn.Module):
        def forward(self, x):
            return undefended(x)

        def route_logits(self, x):
            brightness = x.mean((1, 2, 3))
            return torch.stack([brightness, torch.full_like(brightness, 0.3)], 1)

    x, y = test_images
    darker = custom(lambda model, x, y: (x - 0.1).clamp(min=0), eps=0.1)
    frame = evaluate(Routed(), x, y, {"darker": darker}, batch_size=50)
    assert tuple(frame.columns) == (*COLUMNS, "expert_clean", "expert_adversarial")
    assert frame["expert_clean"].tolist() == (x.mean((1, 2, 3)) < 0.3).long().tolist()
    assert frame["expert_adversarial"].tolist() == ((x - 0.1).clamp(min=0).mean((1, 2, 3)) < 0.3).long().tolist()
    assert (frame["expert_clean"] != frame["expert_adversarial"]).any()


def test_memory_that_does_not_suffice_halves_the_batch_and_says_so(undefended, test_images, caplog):
    sizes = []

    def hungry(model, x, y):
        sizes.append(len(x))
        if len(x) > 30:
            raise torch.OutOfMemoryError("too much")
        return x

    x, y = test_images
    frame = evaluate(undefended, x, y, {"hungry": custom(hungry), "again": custom(hungry)}, batch_size=100)
    assert sizes == [100, 50, 25, 25, 25, 25, 20, 25, 25, 25, 25, 20]
    assert frame["index"].tolist() == list(range(120)) * 2
    assert [record.getMessage().split()[-1] for record in caplog.records] == ["50", "25"]


def test_memory_for_not_even_one_example(undefended, test_images):
    def hungry(model, x, y):
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        evaluate(undefended, *test_images, {"hungry": custom(hungry)}, batch_size=2)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"settings": {}}, ConfigError, ["0 attack settings"]),
        ({"batch_size": 0}, ConfigError, ["batch size 0"]),
        ({"settings": {"mine": {"attack": "pgdd"}}}, ConfigError, ["'mine'", "'pgdd'", "pgd"]),
        ({"settings": {"mine": lambda model, x, y: x}}, ConfigError, ["'mine'", "Attack("]),
        ({"x": torch.rand(4, 3, 16, 16) * 3 - 1}, DataError, ["[0,1]"]),
        ({"x": torch.zeros(4, 16, 16)}, DataError, ["(4, 16, 16)", "(N, C, H, W)"]),
        ({"x": torch.zeros(0, 3, 16, 16), "y": torch.zeros(0, dtype=torch.long)}, DataError, ["0 images"]),
        ({"y": torch.zeros(3, dtype=torch.long)}, DataError, ["4 images", "(3,)"]),
        ({"y": torch.tensor([0, 1, 2, 10])}, DataError, ["0 to 10", "10 classes"]),
        ({"y": torch.tensor([0, 1, 2, -1])}, DataError, ["-1 to 2"]),
        ({"indices": [1, 2]}, DataError, ["2 indices"]),
    ],
)
def test_refusals(changes, error, words, undefended):
    arguments = {
        "x": torch.rand(4, 3, 16, 16),
        "y": torch.zeros(4, dtype=torch.long),
        "settings": {"clean": CLEAN},
        "batch_size": 2,
        **changes,
    }
    with pytest.raises(error) as caught:
        evaluate(undefended, **arguments)
    assert all(word in str(caught.value) for word in words)
