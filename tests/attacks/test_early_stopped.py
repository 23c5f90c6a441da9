"""Early-stopped PGD against a loop over single examples, and its two limits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat.attacks import names, pgd
from moat.attacks.parts.early_stopped import early_stopped_pgd
from moat.base.errors import ConfigError, MoatError

SETTING = {"eps": 0.1, "step_size": 0.03, "steps": 5}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).double()
    nn.init.normal_(net[-1].weight, std=0.5)
    return net.eval()


@pytest.fixture
def batch(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of which some are misclassified from the start, and most after some steps."""
    x = torch.rand(24, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 4
    return x, y


def cross_entropy_of(model, y):
    def loss(x_adv):
        logits = model(x_adv)
        return F.cross_entropy(logits, y, reduction="none"), logits

    return loss


def alone(model, x, y, start, tau):
    """One example (1, C, H, W), as the paper writes it."""
    x_adv, left, taken = start.clone(), tau, 0
    for _ in range(SETTING["steps"]):
        leaf = x_adv.clone().requires_grad_()
        logits = model(leaf)
        wrong = bool(logits.argmax(1) != y)
        if wrong and left == 0:
            break
        left -= wrong
        taken += 1
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
        x_adv = torch.minimum(torch.maximum(x_adv + 0.03 * gradient.sign(), x - 0.1), x + 0.1).clamp(0, 1)
    return x_adv, taken


@pytest.mark.parametrize("tau", [0, 1, 2, 5])
def test_it_equals_a_loop_over_single_examples(model, batch, tau):
    x, y = batch
    out = early_stopped_pgd(model, x, y, **SETTING, tau=tau, ascend_loss=cross_entropy_of(model, y), random_start=False)
    each = [alone(model, x[i : i + 1], y[i : i + 1], x[i : i + 1], tau) for i in range(len(x))]
    torch.testing.assert_close(out, torch.cat([image for image, _ in each]), rtol=0, atol=1e-15)
    counts = [taken for _, taken in each]
    assert counts[:4] == [min(tau, 5)] * 4
    assert tau == 5 or len(set(counts)) > 2, "examples must leave at different steps for this test to mean anything"
    assert float((out - x).abs().max()) <= 0.1 + 1e-12
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_tau_of_all_steps_is_plain_pgd(model, batch, start):
    x, y = batch
    plain = pgd(model, x, y, **SETTING, random_start=start, generator=torch.Generator().manual_seed(1))
    stopped = early_stopped_pgd(
        model, x, y, **SETTING, tau=5, ascend_loss=cross_entropy_of(model, y), random_start=start,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    torch.testing.assert_close(stopped, plain, rtol=0, atol=1e-12)


def test_noise_moves_only_those_that_still_run_and_stays_in_the_ball(model, batch):
    x, y = batch
    run = {"tau": 0, "ascend_loss": cross_entropy_of(model, y), "random_start": False}
    noisy = early_stopped_pgd(model, x, y, **SETTING, **run, noise=0.01, generator=torch.Generator().manual_seed(2))
    again = early_stopped_pgd(model, x, y, **SETTING, **run, noise=0.01, generator=torch.Generator().manual_seed(2))
    quiet = early_stopped_pgd(model, x, y, **SETTING, **run)
    assert torch.equal(noisy, again)
    assert torch.equal(noisy[:4], x[:4]), "misclassified from the start"
    assert not torch.equal(noisy[4:], quiet[4:])
    assert float((noisy - x).abs().max()) <= 0.1 + 1e-12


def test_it_leaves_the_model_as_it_was_and_is_no_registered_attack(model, batch):
    x, y = batch
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    early_stopped_pgd(model, x, y, **SETTING, tau=1, ascend_loss=cross_entropy_of(model, y))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert "early_stopped" not in names()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tau": -1}, "tau: -1"), ({"tau": 0.5}, "tau: 0.5"), ({"noise": 2.0}, "noise: 2.0"), ({"steps": 0}, "steps: 0")],
)
def test_bad_parameters_are_named(model, batch, change, message):
    x, y = batch
    with pytest.raises(ConfigError, match=message):
        early_stopped_pgd(model, x, y, **{**SETTING, "tau": 0, "ascend_loss": cross_entropy_of(model, y), **change})


def test_a_gradient_that_is_no_number_is_reported(model, batch):
    x, y = batch
    with torch.no_grad():
        model[-1].weight[0, 0] = torch.nan
    with pytest.raises(MoatError, match="not a number for 24 of 24"):
        early_stopped_pgd(model, x, y, **SETTING, tau=5, ascend_loss=cross_entropy_of(model, y))
