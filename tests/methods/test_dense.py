"""The dense methods: each update against its formula, re-computed here in float64, and by finite differences."""

import math

import pytest
import torch
from tiny_methods import step_of

from moat.attacks import fgsm
from moat.methods.base import Step
from moat.methods.hybrid import balance, epsilon_fraction, hybrid_loss


@pytest.fixture
def seen(monkeypatch):
    """Makes a method tell what it minimizes instead of minimizing it."""

    def watch(method):
        losses, inputs = [], []
        monkeypatch.setattr(method, "minimize", lambda loss, optimizer="model": losses.append(loss))
        method.model.double()
        method.model.eval()
        method.model.register_forward_hook(
            lambda module, arguments, output: None if arguments[0].requires_grad else inputs.append(arguments[0])
        )
        return losses, inputs

    return watch


def probabilities(model, x):
    with torch.no_grad():
        return model(x).softmax(1)


def cross_entropy(p, y):
    return -sum(math.log(p[i, y[i]]) for i in range(len(y))) / len(y)


def kl(p, q):
    return [sum(float(p[i, k] * (p[i, k] / q[i, k]).log()) for k in range(p.shape[1])) for i in range(len(p))]


def mart(p, q, y):
    terms = []
    for i, divergence in enumerate(kl(p, q)):
        best_other = max(float(q[i, k]) for k in range(q.shape[1]) if k != y[i])
        boosted = -math.log(q[i, y[i]]) - math.log(1 - best_other)
        terms.append(boosted + 5 * divergence * (1 - float(p[i, y[i]])))
    return sum(terms) / len(terms)


def trades(p, q, y):
    return cross_entropy(p, y) + 6 * sum(kl(p, q)) / len(y)


# What is minimized, from p = softmax(F(x)), q = softmax(F(x')) and the labels.
LOSSES = {
    "standard": lambda p, q, y: cross_entropy(p, y),
    "pgd-at": lambda p, q, y: cross_entropy(q, y),
    "fat": lambda p, q, y: cross_entropy(q, y),
    "trades": trades,
    "fat-trades": trades,
    "pgd-at-sparse": trades,
    "mart": mart,
    "mart-official": mart,
    "hybrid": lambda p, q, y: (cross_entropy(p, y) + cross_entropy(q, y)) / 2,
    "hybrid-fgsm": lambda p, q, y: (cross_entropy(p, y) + cross_entropy(q, y)) / 2,
    "pgd-at-half": lambda p, q, y: cross_entropy(torch.cat([q[: len(y) // 2], p[len(y) // 2 :]]), y),
    "fgsm-at": lambda p, q, y: cross_entropy(torch.cat([q[: len(y) // 2], p[len(y) // 2 :]]), y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_minimized_is_the_formula(tiny, seen, name):
    method, (x, y) = tiny.method(name), tiny.batch()
    # A head that is sure of something: with the small initial weights all terms would be alike.
    torch.nn.init.normal_(method.model.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    losses, inputs = seen(method)
    method.begin_epoch(0)
    metrics = method.update(x.double(), y, step_of(0, 0))
    # The last thing that passes the net, free of any gradient: the clean images of the attack's objective come first.
    final = inputs[-1]
    q = probabilities(method.model, final)
    p = probabilities(method.model, x.double())
    expected = LOSSES[name](p, q, y)
    # The losses are computed in float32.
    assert float(losses[0].detach()) == pytest.approx(expected, rel=2e-5)
    assert float(metrics["loss"]) == float(losses[0].detach())
    if "attack" in method.recipe:
        assert 0 < float((final - x).abs().max()) <= method.attack["eps"] + 1e-6
        assert final.min() >= 0 and final.max() <= 1


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "pgd-at-sparse"])
def test_its_gradient_is_that_of_finite_differences(tiny, seen, name):
    """With the attacked images held fixed: no gradient flows through the attack, and none is cut off elsewhere."""
    method, (x, y) = tiny.method(name), tiny.batch()
    torch.nn.init.normal_(method.model.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    losses, inputs = seen(method)
    method.logits = lambda x, model=None: (model or method.model)(x)
    method.begin_epoch(0)
    method.update(x.double(), y, step_of(0, 0))
    bias = method.model.head.bias
    (gradient,) = torch.autograd.grad(losses[0], bias)
    adversarial = inputs[-1]

    def value():
        p, q = probabilities(method.model, x.double()), probabilities(method.model, adversarial)
        return LOSSES[name](p, q, y)

    for k in range(3):
        ends = []
        for shift in (1e-5, -2e-5):
            bias.data[k] += shift
            ends.append(value())
        bias.data[k] += 1e-5
        assert float(gradient[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


# -- half a batch --------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 15, 2])
@pytest.mark.parametrize("name", ["fgsm-at", "pgd-at-half"])
def test_the_first_half_is_attacked_and_the_rest_is_clean(tiny, seen, name, size):
    method, (x, y) = tiny.method(name), tiny.batch()
    x, y = x[:size].double(), y[:size]
    losses, inputs = seen(method)
    method.update(x, y, step_of(0, 0))
    (mixed,) = inputs
    assert mixed.shape == x.shape
    assert torch.equal(mixed[size // 2 :], x[size // 2 :])
    changed = (mixed != x).flatten(1).any(1)
    assert changed[: size // 2].all()
    if name == "fgsm-at":
        torch.testing.assert_close(mixed[: size // 2], fgsm(method.model, x, y, eps=0.03)[: size // 2])


# -- FAT -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "epochs", "expected"),
    [
        # Officially: 0 in the first 50 of 120 epochs, 1 up to the 90th, then 2.
        ("fat", 120, {0: 0, 49: 0, 50: 1, 89: 1, 90: 2, 119: 2}),
        # Officially: 0, 1, 2, 3 from the 1st, 31st, 51st and 71st of 85 epochs.
        ("fat-trades", 85, {0: 0, 29: 0, 30: 1, 49: 1, 50: 2, 69: 2, 70: 3, 84: 3}),
    ],
)
def test_tau_grows_when_it_officially_does(tiny, name, epochs, expected):
    method = tiny.method(name)
    device = torch.device("cpu")
    for batch in (0, 99):
        assert {epoch: method.tau(Step(0, epoch, epochs, batch, 100, device)) for epoch in expected} == expected, (
            "constant within an epoch"
        )


@pytest.mark.parametrize("name", ["fat", "fat-trades"])
def test_at_tau_0_what_is_misclassified_from_the_start_is_almost_clean(tiny, seen, name):
    method, (x, y) = tiny.method(name), tiny.batch()
    x = x.double()
    losses, inputs = seen(method)
    method.attack["random_start"], method.attack["steps"] = "normal", 10
    right = method.model(x).argmax(1)
    y = torch.where(torch.arange(16) < 8, right, (right + 1) % 10)
    method.update(x, y, step_of(0, 0))
    moved = (inputs[-1] - x).flatten(1).abs().amax(1)
    # The start is some standard deviations of 0.001 away, a step is 2/255.
    assert (moved[8:] < 0.007).all() and (moved[:8] > 0.007).all()


# -- hybrid --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "fraction"), [(0.0, 0.1), (0.2, 0.325), (0.4, 0.55), (0.8, 1.0), (0.9, 1.0), (1.0, 1.0)]
)
def test_epsilon_grows_from_a_tenth_to_the_whole_at_80_percent(progress, fraction):
    assert epsilon_fraction(progress, start=0.1, full_at=0.8) == pytest.approx(fraction)


@pytest.mark.parametrize(("name", "full_step"), [("hybrid", 0.0075), ("hybrid-fgsm", 0.03)])
def test_the_step_size_grows_with_epsilon(tiny, name, full_step):
    method = tiny.method(name)
    for epoch, fraction in ((0, 0.1), (20, 0.55), (40, 1.0), (49, 1.0)):
        attack = method.attack_at(epoch, 50)
        assert attack["eps"] == pytest.approx(0.03 * fraction)
        assert attack["step_size"] == pytest.approx(full_step * fraction)


@pytest.mark.parametrize(
    ("clean", "adversarial", "alpha"),
    [(0.9, 0.9, 0.5), (0.9, 0.0, 0.0), (0.8, 0.2, 0.2), (0.6, 0.3, 1 / 3), (0.0, 0.0, 0.37)],
)
def test_alpha_is_the_share_of_the_adversarial_accuracy(clean, adversarial, alpha):
    assert balance(clean, adversarial, otherwise=0.37) == pytest.approx(alpha)
    assert 0 <= balance(clean, adversarial, otherwise=0.37) <= 0.5


def test_hybrids_loss_weighs_by_alpha():
    clean, adversarial = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0])
    both = [cross_entropy(logits.softmax(1), y) for logits in (clean, adversarial)]
    assert float(hybrid_loss(clean, adversarial, y, 0.25)) == pytest.approx(0.25 * both[0] + 0.75 * both[1])


def test_alpha_follows_the_epochs_and_is_part_of_the_state(tiny):
    method = tiny.method("hybrid")
    assert method.alpha == 0.5
    asked = []

    def accuracy(attack):
        asked.append(attack.parameters)
        return {"none": 0.8, "pgd": 0.2}[attack.parameters["attack"]]

    row = method.end_epoch(0, accuracy)
    assert row == {
        "alpha": 0.5,
        "epsilon": pytest.approx(0.003),
        "clean_validation_accuracy": 0.8,
        "adversarial_validation_accuracy": 0.2,
    }
    assert method.alpha == pytest.approx(0.2)
    assert asked[1]["eps"] == 0.03, "the whole epsilon, whatever the epoch"
    other = tiny.method("hybrid")
    other.load_state_dict(method.state_dict())
    assert other.alpha == method.alpha


def test_alpha_is_that_of_the_epoch_before_in_the_loss(tiny, seen):
    method, (x, y) = tiny.method("hybrid"), tiny.batch()
    losses, inputs = seen(method)
    method.alpha = 0.125
    method.update(x.double(), y, step_of(0, 0))
    x_adv = inputs[-1]
    p, q = probabilities(method.model, x.double()), probabilities(method.model, x_adv)
    expected = 0.125 * cross_entropy(p, y) + 0.875 * cross_entropy(q, y)
    assert float(losses[0].detach()) == pytest.approx(expected, rel=2e-5)
