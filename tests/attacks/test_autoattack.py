"""AutoAttack and Square against the package called as its users call it, and what this project adds to it."""

import logging
import random

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from torch import nn

from moat import attacks
from moat.attacks.autoattack import review, stages
from moat.attacks.parts.flags import collect
from moat.base.errors import ConfigError

EPS = 12 / 255
FEW = {"n_targets": 2, "n_queries": 40}


def the_package(model, eps, seed=0, **sizes):
    """The package's object with fewer targets and queries, as far as its attributes allow."""
    logging.getLogger("auto-attack").setLevel(logging.CRITICAL)
    package = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=seed)
    package.apgd_targeted.n_target_classes = package.fab.n_target_classes = sizes["n_targets"]
    package.square.n_queries = sizes["n_queries"]
    return package


def predictions(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


@pytest.mark.brief(keep=lambda case: case["batch_size"] == 250)
@pytest.mark.parametrize(("eps", "seed", "batch_size", "n_targets"), [(2 * EPS, 0, 250, 1), (3 * EPS, 7, 16, 2)])
def test_verdicts_are_the_packages(eps, seed, batch_size, n_targets, in_double, few):
    defended, (x, y) = in_double["defended"], few
    sizes = {"n_targets": n_targets, "n_queries": 40}
    expected, labels = the_package(defended, eps, seed, **sizes).run_standard_evaluation(x, y, batch_size=batch_size)
    found = attacks.autoattack(defended, x, y, eps=eps, seed=seed, batch_size=batch_size, **sizes)
    verdicts = predictions(defended, found) == y
    assert torch.equal(found[verdicts], x[verdicts]) and torch.equal(expected[verdicts], x[verdicts])
    assert (found - x).abs().max() <= eps + 1e-6
    assert torch.equal(verdicts, labels == y) and 0 < verdicts.sum() < (predictions(defended, x) == y).sum()


def test_the_stages_one_by_one_give_the_same_verdicts(in_double, few):
    """As the runner calls them: each stage on what is left, with a pause of any length between them."""
    from moat.evaluation import evaluate

    defended, (x, y) = in_double["defended"], few
    setting = {"attack": "autoattack", "eps": 3 * EPS, "batch_size": 16, "n_iter": 10, **FEW}
    rows = evaluate(defended, x, y, {"aa": setting}, batch_size=7)
    whole = attacks.autoattack(defended, x, y, eps=3 * EPS, batch_size=16, n_iter=10, **FEW)
    assert rows["correct"].tolist() == (predictions(defended, whole) == y).tolist()
    assert set(rows["misclassified_by"].dropna()) <= {"clean", "apgd-ce", "apgd-t", "fab-t", "square"}
    assert rows["correct"].tolist() == rows["misclassified_by"].isna().tolist()
    assert (rows["misclassified_by"] == "apgd-ce").any() and rows["linf"].max() <= 3 * EPS + 1e-6


def test_the_stages_are_the_packages(defended):
    options = {"eps": EPS, "seed": 0, "batch_size": 4, "n_iter": 2, "n_targets": 1, "n_queries": 1}
    assert list(stages(defended, version="standard", **options)) == the_package(defended, EPS, **FEW).attacks_to_run


def test_square_without_a_generator_is_the_packages(in_double, few):
    defended, (x, y) = in_double["defended"], few
    expected = SquareAttack(defended, eps=3 * EPS, n_queries=60, seed=3, resc_schedule=False).perturb(x, y)
    found = attacks.square(defended, x, y, eps=3 * EPS, n_queries=60, seed=3)
    verdicts = predictions(defended, found) == y
    assert torch.equal(verdicts, predictions(defended, expected) == y)
    torch.testing.assert_close(found[~verdicts], expected[~verdicts], rtol=0, atol=1e-6)
    assert 0 < verdicts.sum() < (predictions(defended, x) == y).sum()


def test_square_with_a_generator_each_does_not_depend_on_the_batch(in_double, few):
    from moat.data.seeding import generator

    defended, (x, y) = in_double["defended"], few

    def run(rows):
        draws = [generator(0, 0, "square", batch=row) for row in rows]
        return attacks.square(defended, x[rows], y[rows], eps=2 * EPS, n_queries=30, generator=draws)

    whole, part = run(list(range(20))), run([11, 3, 7])
    torch.testing.assert_close(whole[[11, 3, 7]], part, rtol=0, atol=1e-6)
    assert (whole - x[:20]).abs().max() > 0


def test_a_single_generator_replaces_the_seed(defended, few):
    x, y = few

    def run(seed):
        return attacks.square(defended, x, y, eps=EPS, n_queries=10, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


@pytest.mark.parametrize(
    "attack",
    [
        lambda model, x, y: attacks.autoattack(model, x, y, eps=EPS, n_iter=2, n_targets=1, n_queries=2),
        lambda model, x, y: attacks.square(model, x, y, eps=EPS, n_queries=2),
    ],
)
def test_nothing_is_left_behind(attack, trained, batch, capsys, caplog):
    """Random numbers, modes, gradients, memory format, standard output; also under autocast and no_grad."""
    x, y = batch[0][:8].to(memory_format=torch.channels_last), batch[1][:8]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    trained.train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = attack(trained, x, y)
    assert trained.training and all(p.requires_grad and p.grad is None for p in trained.parameters())
    trained.eval()
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert found.dtype == x.dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - x).abs().max() <= EPS + 1e-6 and capsys.readouterr().out == ""


class Toy(nn.Module):
    """Ten logits that are linear in the pixels, of which ``change`` decides what is given out."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(192, 10)
        self.change = change

    def forward(self, x):
        return self.change(self, x, self.linear(x.flatten(1)))


def by_gradient(model, x, z):
    with torch.enable_grad():
        image = x.detach().requires_grad_()
        torch.autograd.grad(image.sum(), image)
    return z


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model, x, z: z, set()),
        (lambda model, x, z: z + 0.01 * torch.rand_like(z), {"randomized"}),
        (lambda model, x, z: z.softmax(1), {"probabilities"}),
        (by_gradient, {"dynamic"}),
        (lambda model, x, z: z[:, 5:], set()),
        (lambda model, x, z: z[:, 7:], {"target-classes"}),
        (lambda model, x, z: z.detach() + 0 * z.tanh(), {"zero-gradient"}),
    ],
)
def test_the_packages_warnings_are_flags(change, expected, caplog):
    model, x = Toy(change), torch.rand(4, 3, 8, 8)
    for attempt in range(2):
        # Twice: what one model raises must not stick to the next.
        with collect() as flags:
            y = predictions(model, x)
            attacks.autoattack(model, x, y, eps=0.01, n_iter=2, n_queries=2)
        assert set(flags) - {"square-stronger"} == expected, (attempt, flags)
    assert not caplog.records


def test_flags_do_not_depend_on_whether_logging_is_on():
    model, x = Toy(lambda model, x, z: z.softmax(1)), torch.rand(4, 3, 8, 8)
    logging.disable(logging.CRITICAL)
    try:
        with collect() as flags:
            attacks.autoattack(model, x, predictions(model, x), eps=0.01, n_iter=2, n_queries=2)
    finally:
        logging.disable(logging.NOTSET)
    assert "probabilities" in flags


@pytest.mark.parametrize(("misclassified", "flagged"), [(0, False), (2, False), (3, True)])
def test_square_that_succeeds_where_gradients_did_not_is_a_flag(misclassified, flagged):
    with collect() as flags:
        review({"clean": 10, "apgd-ce": 5, "square": misclassified}, 1000)
    assert ("square-stronger" in flags) == flagged


def test_flags_that_nobody_collects_are_warnings(caplog):
    review({"square": 1}, 10)
    assert "square-stronger" in caplog.text and "10.00%" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 8}, ["eps", "8"]),
        ({"version": "custom"}, ["version", "'custom'", "'standard'"]),
        ({"n_queries": 0}, ["n_queries", "0"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"precision": "half"}, ["precision", "'half'", "'bf16'"]),
    ],
)
def test_refused_parameters(options, words, defended, few):
    with pytest.raises(ConfigError) as caught:
        attacks.autoattack(defended, *few, **{"eps": EPS, **options})
    assert all(word in str(caught.value) for word in words)
