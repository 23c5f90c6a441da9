"""Attacks in normalised space against the same steps written out on normalised tensors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat.attacks import fgsm, pgd, resolve
from moat.attacks.parts.early_stopped import early_stopped_pgd
from moat.attacks.parts.setting import both_gradients
from moat.attacks.parts.spaces import PIXELS, SPACES, normalised_space, training_space
from moat.base.errors import ConfigError
from moat.models import nets
from moat.models.moe import build_mixture
from moat.models.nets.normalize import STATISTICS, Normalize

STATISTICS_HERE = ((0.49, 0.48, 0.1), (0.25, 0.24, 0.5))
STD = torch.tensor(STATISTICS_HERE[1], dtype=torch.float64).view(1, -1, 1, 1)
# As DWF prints them for CIFAR-10.
PRINTED = ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197))


def model(kind="net"):
    torch.manual_seed(0)
    options = {"width": 1 / 16, "image_size": 8, "normalize": STATISTICS_HERE}
    if kind == "net":
        return nets.build("resnet18", 10, **options).double().eval()
    return build_mixture(kind, "resnet18", 10, **options, experts=2).double().eval()


def batch():
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Some pixels black and some white: there, a clamp would bind.
    return (x * 2 - 0.5).clamp(0, 1), torch.arange(4)


def column(values):
    return torch.tensor(values, dtype=torch.float32).double().view(1, -1, 1, 1)


def on_normalised(net, x, y, statistics, box, eps, step_size, steps):
    """Signed steps on z = (x - mean) / std, cut to the ball and to ``box``; pixel units again at the end."""
    mean, std = map(column, statistics)
    z = z0 = (x - mean) / std
    for _ in range(steps):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(z * std + mean), y, reduction="sum"), z)
        z = torch.minimum(torch.maximum(z + step_size * gradient.sign(), z0 - eps), z0 + eps).clamp(*box)
    return z.detach() * std + mean


@pytest.mark.brief(keep=lambda case: case["kind"] == "net")
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
@pytest.mark.parametrize("statistics", ["model", "imagenet", PRINTED, {"mean": PRINTED[0], "std": PRINTED[1]}])
@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("normalised_noclip", lambda mean, std: (-1e9, 1e9)),
        ("normalised_clip01", lambda mean, std: (0, 1)),
        ("normalised_valid", lambda mean, std: (-mean / std, (1 - mean) / std)),
    ],
)
def test_it_is_the_attack_on_normalised_tensors(name, box, statistics, kind, attack, parameters, steps):
    net, (x, y) = model(kind), batch()
    x_adv = attack(net, x, y, **parameters, space=training_space(name, net, statistics))
    steps = steps or {key: parameters[key] for key in ("eps", "step_size", "steps")}
    used = {"model": STATISTICS_HERE, "imagenet": STATISTICS["imagenet"]}.get(str(statistics), PRINTED)
    box = box(*map(column, used))
    torch.testing.assert_close(x_adv, on_normalised(net, x, y, used, box, **steps), rtol=0, atol=1e-12)
    if name == "normalised_noclip":
        radius = ((x_adv - x) / column(used[1])).abs().amax((0, 2, 3))
        expected = torch.full((3,), parameters["eps"], dtype=torch.float64)
        torch.testing.assert_close(radius, expected, rtol=1e-9, atol=0)
        assert x_adv.min() < 0 and x_adv.max() > 1


@pytest.mark.parametrize("name", SPACES)
def test_early_stopped_attacks_work_in_every_space(name):
    """With patience for all steps it is PGD there; without, misclassified examples stay where they are, but cut."""
    net, (x, y) = model(), batch()
    space, options = training_space(name, net), {"eps": 0.1, "step_size": 0.03, "steps": 4, "random_start": False}

    def loss(images):
        logits = net(images)
        return F.cross_entropy(logits, y, reduction="none"), logits

    patient = early_stopped_pgd(net, x, y, **options, tau=4, ascend_loss=loss, space=space)
    torch.testing.assert_close(patient, pgd(net, x, y, **options, space=space), rtol=0, atol=1e-12)
    with torch.no_grad():
        misclassified = net(x).argmax(1) != y
    stopped = early_stopped_pgd(net, x, y, **options, tau=0, ascend_loss=loss, space=space)
    assert misclassified.any()
    still = space.decode(space.encode(x).clamp(0, 1)) if name == "normalised_clip01" else x
    torch.testing.assert_close(stopped[misclassified], still[misclassified], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_what_is_cut_to_0_and_1_starts_whole(kind):
    """Most of a normalised image lies outside: cut before the first gradient, the net would see another image."""
    net, (x, _) = model(), batch()
    space = training_space("normalised_clip01", net)
    z, draws = space.encode(x), torch.Generator().manual_seed(0)
    start = space.start(z, 0.1, kind, draws)
    assert (start - z).abs().max() <= 0.1 + 1e-12 and not torch.equal(start, z)
    assert (start < -0.5).any() and (start > 1.5).any()


@pytest.mark.parametrize("start", ["uniform", True])
def test_a_random_start_fills_the_ball_of_every_channel(start):
    net, (x, y) = model(), batch()
    draws, space = torch.Generator().manual_seed(0), training_space("normalised_noclip", net)
    x_adv = pgd(net, x, y, eps=0.5, step_size=1e-9, steps=1, random_start=start, generator=draws, space=space)
    radius = ((x_adv - x) / STD).abs().amax((0, 2, 3))
    assert (radius > 0.49).all() and (radius < 0.5001).all()


def test_the_view_is_the_model_and_leaves_it_as_it_was():
    net, (x, y) = model().train(), batch()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    space = normalised_space(net, clip="none")
    torch.testing.assert_close(space.decode(space.encode(x)), x, rtol=0, atol=1e-12)
    pgd(net, x, y, eps=0.1, step_size=0.1, steps=2, space=space)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    view = space.view(net)
    assert {id(parameter) for parameter in view.parameters()} == {id(each) for each in net.parameters()}
    torch.testing.assert_close(view.eval()(space.encode(x)), net.eval()(x), rtol=0, atol=1e-9)


def test_a_uniform_deviation_of_one_and_no_clamp_in_reach_is_pixel_space():
    torch.manual_seed(0)
    net = nets.build("resnet18", 10, width=1 / 16, image_size=8, normalize=((0.0,), (1.0,))).double().eval()
    x, y = batch()
    x = 0.3 + 0.4 * x
    parameters = {"eps": 0.1, "step_size": 0.03, "steps": 4, "random_start": False}
    found = {name: pgd(net, x, y, **parameters, space=training_space(name, net)) for name in SPACES}
    torch.testing.assert_close(found["pixel"], found["normalised_noclip"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found["pixel"], found["normalised_clip01"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found["pixel"], found["normalised_valid"], rtol=0, atol=1e-12)
    assert training_space("pixel", net) is PIXELS


def test_a_setting_works_where_it_is_told_to():
    net, (x, y) = model(), batch()
    space = training_space("normalised_noclip", net)
    setting = {"attack": "pgd", "eps": 0.1, "step_size": 0.03, "steps": 3, "random_start": False}
    there = resolve("here", setting).in_space(space)
    expected = pgd(net, x, y, eps=0.1, step_size=0.03, steps=3, random_start=False, space=space)
    torch.testing.assert_close(there(net, x, y), expected, rtol=0, atol=0)
    # A net with a router is validated with both gradients, each there.
    assert set(both_gradients(there, net)) == {"straight-through"} and there.in_space(PIXELS) is there
    clean = resolve("clean", {"attack": "none"})
    assert clean.in_space(space) is clean
    with pytest.raises(ConfigError, match="the attack 'square' works in pixels only"):
        resolve("here", {"attack": "square", "eps": 0.1}).in_space(space)


def test_an_unknown_space_is_refused():
    with pytest.raises(ConfigError, match="attack_space.name.*'normalized_noclip'.*did you mean 'normalised_noclip'"):
        training_space("normalized_noclip", model())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Flatten(), "Flatten has no normalisation layer"),
        (nn.Sequential(Normalize([0.5], [0.2]), Normalize([0.5], [0.3])), "normalise differently"),
    ],
)
def test_a_model_without_one_normalisation_is_refused(model, said):
    with pytest.raises(ConfigError, match=said):
        normalised_space(model, clip="none")
