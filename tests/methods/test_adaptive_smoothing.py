"""Adaptive smoothing: gamma, alpha and the mixing net as their formulas, and what its views fix. (The whole update is
compared with the textbook in test_training_spaces.py.)"""

import pytest
import torch
from torch.nn import functional as F

from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import input_gradient
from moat.base.errors import ConfigError
from moat.models.moe import build_mixture

SIZE = 16


def images(count=8):
    return torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tiny(**options):
    torch.manual_seed(0)
    return build_mixture("adaptive-smoothing", "resnet18", 10, width=1 / 16, image_size=SIZE, **options).double()


def test_gamma_is_normalised_over_the_cut_batch_in_training_and_by_running_statistics_in_evaluation():
    model, m = tiny().train(), torch.tensor([0.0, 1.0, 2.0, 10.0], dtype=torch.float64)
    mean, std = 3.25, float(m.std())
    cut = m.clamp(mean - 0.6 * std, mean + 0.6 * std)
    expected = 2 * (cut - cut.mean()) / (cut.var(correction=0) + 1e-5).sqrt() + 0.4
    torch.testing.assert_close(model.gamma(m), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.alpha(expected), torch.sigmoid(expected))
    # A hundredth of the batch's statistics.
    assert float(model.norm.running_mean) == pytest.approx(0.01 * float(cut.mean()))
    model.eval()
    expected = 2 * (m - model.norm.running_mean) / (model.norm.running_var + 1e-5).sqrt() + 1.0
    torch.testing.assert_close(model.gamma(m), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.alpha(expected), 0.5 + 0.45 * torch.sigmoid(expected))


def test_the_mixture_is_its_formula_on_the_features_of_both_nets():
    model, x = tiny(alpha_low=0.6, alpha_high=0.9).eval(), images()
    features = []
    for net in model.experts:
        h, of_net = net.trunk.stem(net.normalize(x)), []
        for number, block in enumerate(net.trunk.blocks, start=1):
            h = block(h)
            if number in (2, 4):
                of_net.append(h)
        features.append(of_net)
    first, second = (torch.cat(pair, 1) for pair in zip(*features, strict=True))
    layers = model.mixing.layers
    h = layers[2](layers[1](layers[0](first) + second))
    m = h.mean((2, 3)) @ model.mixing.head.weight[0]
    alpha = (0.6 + 0.3 * torch.sigmoid(model.gamma(m)))[:, None]
    g, h = (net(x).softmax(1) for net in model.experts)
    torch.testing.assert_close(model(x), ((1 - alpha) * g + alpha * h).log(), rtol=1e-9, atol=1e-12)


def test_the_mixing_net_of_two_resnet18_doubles_its_channels_from_128():
    with torch.device("meta"):
        layers = build_mixture("adaptive-smoothing", "resnet18", 10).mixing.layers
    assert [(layer[0].conv1.in_channels, layer[1].conv2.out_channels) for layer in layers] == [
        *((128, 256), (256, 512), (512, 1024))
    ]
    assert [layer[0].conv1.stride for layer in layers] == [(2, 2)] * 3


def test_views_fix_alpha_or_climb_the_mixing_net_too():
    model, x = tiny().eval(), images()
    y, views = model(x).argmax(1), model.attack_views()
    torch.testing.assert_close(views["constant-alpha"](x), model(x))
    g, h = (net(x).softmax(1) for net in model.experts)
    torch.testing.assert_close(views["alpha_min"](x), (0.5 * g + 0.5 * h).log(), rtol=1e-9, atol=1e-12)
    z = x.clone().requires_grad_()
    standard, robust, gamma = model.parts(z)
    alpha = model.alpha(gamma)[:, None]
    logits = ((1 - alpha) * standard.softmax(1) + alpha * robust.softmax(1)).log()
    loss = 0.6 * F.cross_entropy(logits, y, reduction="sum") + 0.4 * F.softplus(-gamma).sum()
    (expected,) = torch.autograd.grad(loss, z)
    found = input_gradient(views["joint0.4"], x, cross_entropy(y))
    torch.testing.assert_close(0.6 * found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("arch", "options", "said"),
    [
        ("preact-resnet18", {}, "reads the stages of a ResNet"),
        ("resnet18", {"alpha_low": 0.9, "alpha_high": 0.6}, "alpha_low, alpha_high: 0.9 to 0.6"),
    ],
)
def test_what_cannot_be_built_is_named(arch, options, said):
    with pytest.raises(ConfigError, match=said):
        build_mixture("adaptive-smoothing", arch, 10, width=1 / 16, **options)
