"""Attacks in normalised space against the same steps written out on normalised tensors."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat.attacks import fgsm, pgd
from moat.attacks.parts.spaces import SPACES, in_normalised_space
from moat.base.errors import ConfigError
from moat.models import nets
from moat.models.moe import build_mixture
from moat.models.nets.normalize import Normalize

STATISTICS = ((0.49, 0.48, 0.1), (0.25, 0.24, 0.5))
MEAN, STD = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in STATISTICS)


def model(kind="net"):
    torch.manual_seed(0)
    options = {"width": 1 / 16, "image_size": 8, "normalize": STATISTICS}
    if kind == "net":
        return nets.build("resnet18", 10, **options).double().eval()
    return build_mixture(kind, "resnet18", 10, **options, experts=2).double().eval()


def batch():
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Some pixels black and some white: there, a clamp would bind.
    return (x * 2 - 0.5).clamp(0, 1), torch.arange(4)


def on_normalised(net, x, y, eps, step_size, steps):
    """Signed steps on z = (x - mean) / std with no clamp to any box of images; pixel units again at the end."""
    z = z0 = (x - MEAN.float().double()) / STD.float().double()
    for _ in range(steps):
        z = z.detach().requires_grad_()
        loss = F.cross_entropy(net(z * STD.float().double() + MEAN.float().double()), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        z = z0 + (z + step_size * gradient.sign() - z0).clamp(-eps, eps)
    return z.detach() * STD.float().double() + MEAN.float().double()


@pytest.mark.parametrize("kind", ["net", "dwf", "soe"])
@pytest.mark.parametrize(
    ("attack", "parameters", "steps"),
    [
        (fgsm, {"eps": 0.09}, {"eps": 0.09, "step_size": 0.09, "steps": 1}),
        (pgd, {"eps": 8 / 255, "step_size": 2 / 255, "steps": 6, "random_start": False}, None),
        (pgd, {"eps": 1.0, "step_size": 0.5, "steps": 4, "random_start": False}, None),
    ],
    ids=["fgsm", "pgd", "widest"],
)
def test_it_is_the_attack_on_normalised_tensors_without_a_clamp(kind, attack, parameters, steps):
    net, (x, y) = model(kind), batch()
    x_adv = SPACES["normalised_noclip"](attack)(net, x, y, **parameters)
    steps = steps or {key: parameters[key] for key in ("eps", "step_size", "steps")}
    torch.testing.assert_close(x_adv, on_normalised(net, x, y, **steps), rtol=0, atol=1e-9)
    radius = ((x_adv - x) / STD).abs().amax((0, 2, 3))
    torch.testing.assert_close(radius, torch.full((3,), parameters["eps"], dtype=torch.float64), rtol=1e-5, atol=0)
    assert x_adv.min() < 0 and x_adv.max() > 1


@pytest.mark.parametrize("start", ["uniform", True])
def test_a_random_start_fills_the_ball_of_every_channel(start):
    net, (x, y) = model(), batch()
    attack = SPACES["normalised_noclip"](pgd)
    generator = torch.Generator().manual_seed(0)
    x_adv = attack(net, x, y, eps=0.5, step_size=1e-9, steps=1, random_start=start, generator=generator)
    radius = ((x_adv - x) / STD).abs().amax((0, 2, 3))
    assert (radius > 0.49).all() and (radius < 0.5001).all()


def test_the_view_is_the_model_and_leaves_it_as_it_was():
    net, (x, y) = model().train(), batch()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    space = in_normalised_space(net)
    torch.testing.assert_close(space.from_space(space.to_space(x)), x, rtol=0, atol=1e-12)
    SPACES["normalised_noclip"](pgd)(net, x, y, eps=0.1, step_size=0.1, steps=2)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert {id(parameter) for parameter in space.view.parameters()} == {id(each) for each in net.parameters()}
    torch.testing.assert_close(space.view.eval()(space.to_space(x)), net.eval()(x), rtol=0, atol=1e-9)


def test_a_uniform_deviation_of_one_and_no_clamp_in_reach_is_pixel_space():
    torch.manual_seed(0)
    net = nets.build("resnet18", 10, width=1 / 16, image_size=8, normalize=((0.0,), (1.0,))).double().eval()
    x, y = batch()
    x = 0.3 + 0.4 * x
    parameters = {"eps": 0.1, "step_size": 0.03, "steps": 4, "random_start": False}
    results = [SPACES[name](pgd)(net, x, y, **parameters) for name in ("pixel", "normalised_noclip")]
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)


def test_the_wrapped_attack_keeps_its_signature():
    assert inspect.signature(SPACES["normalised_noclip"](pgd)) == inspect.signature(pgd)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (nn.Flatten(), "Flatten has no normalisation layer"),
        (nn.Sequential(Normalize([0.5], [0.2]), Normalize([0.5], [0.3])), "normalise differently"),
    ],
)
def test_a_model_without_one_normalisation_is_refused(broken, said):
    with pytest.raises(ConfigError, match=said):
        in_normalised_space(broken)
