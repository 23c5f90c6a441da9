"""The registry, exact sizes, normalisation, initialisation and shapes of all nets."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from moat.base.errors import ConfigError
from moat.models import nets
from moat.models.nets.classifier import scale_channels
from moat.models.nets.normalize import STATISTICS

# At 10 classes and 32x32 pixels in 3 channels: parameters, multiply-adds of an image.
SIZES = {
    "densenet121": (6_956_426, 888_350_720),
    "densenet169": (12_493_450, 1_059_799_296),
    "efficientnet-b0": (4_020_358, 31_979_392),
    "googlenet": (5_490_986, 1_337_141_248),
    "inception-v3": (21_806_058, 3_631_154_176),
    "lenet5": (62_006, 651_720),
    "mobilenet-v2": (2_236_682, 87_976_448),
    "preact-resnet18": (11_172_170, 555_422_720),
    "resnet18": (11_173_962, 555_422_720),
    "resnet34": (21_282_122, 1_159_402_496),
    "resnet50": (23_520_842, 1_297_829_888),
    "vgg19": (20_040_522, 398_136_320),
    "wrn-28-10": (36_479_194, 5_243_328_768),
    "xception": (20_827_442, 1_129_681_408),
}
# One of each family of blocks; of the nets of torchvision and timm the cheapest.
FEW = ("lenet5", "resnet18", "preact-resnet18", "wrn-28-10", "vgg19")
few_nets = pytest.mark.brief(keep=lambda case: case["name"] in FEW)


def tiny(name, **options):
    torch.manual_seed(0)
    return nets.build(name, 10, **{"width": 0.1, "image_size": 16, **options}).eval()


def test_registered_names():
    assert nets.names() == sorted(SIZES)


@pytest.mark.brief(keep=lambda case: case["name"] in (*FEW, "efficientnet-b0", "mobilenet-v2"))
@pytest.mark.parametrize("name", sorted(SIZES))
def test_parameters_and_macs(name):
    model = nets.build(name, 10)
    assert (nets.count_parameters(model), nets.count_macs(model, 32, 3)) == SIZES[name]


def test_lenet_for_mnist_has_the_classic_size():
    model = nets.build("lenet5", 10, image_size=28, in_channels=1, normalize="mnist")
    assert nets.count_parameters(model) == 61_706
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_count_macs_restores_each_mode():
    model = nets.build("resnet18", 10, width=0.1)
    model.head.eval()
    nets.count_macs(model, 16, 3)
    assert model.training and model.trunk.training and not model.head.training


@few_nets
@pytest.mark.parametrize("name", sorted(SIZES))
@pytest.mark.parametrize("image_size", [16, 64])
def test_logits_are_the_head_of_the_features(name, image_size):
    model = tiny(name, image_size=image_size)
    x = torch.rand(3, 3, image_size, image_size)
    features = model.features(x)
    assert features.shape == (3, model.head.in_features)
    torch.testing.assert_close(model.head(features), model(x), rtol=0, atol=0)


@few_nets
@pytest.mark.parametrize("name", sorted(SIZES))
def test_channels_last_changes_nothing(name):
    model = tiny(name).double()
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-9, atol=1e-12)


@few_nets
@pytest.mark.parametrize("name", sorted(SIZES))
def test_trains_and_every_parameter_has_a_gradient(name):
    model = tiny(name).train()
    nn.functional.cross_entropy(model(torch.rand(4, 3, 16, 16)), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("statistics", "in_channels"), [*((name, 3) for name in STATISTICS), (([0.5, 0.4, 0.3], [0.1, 0.2, 0.3]), 3)]
)
def test_normalize_is_a_layer_with_buffers(statistics, in_channels):
    model = tiny("resnet18", normalize=statistics, in_channels=in_channels)
    plain = tiny("resnet18", normalize=None, in_channels=in_channels)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in STATISTICS.get(str(statistics), statistics))
    x = torch.rand(2, in_channels, 16, 16)
    torch.testing.assert_close(model(x), plain((x - mean) / std))
    assert {"normalize.mean", "normalize.std"} <= set(model.state_dict())
    assert nets.count_parameters(model) == nets.count_parameters(plain)


def test_cifar10_statistics_are_those_of_pooled_pixels():
    assert STATISTICS["cifar10"] == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def test_initialisation():
    torch.manual_seed(0)
    model = nets.build("resnet18", 10)
    conv = model.trunk.blocks[2].conv2
    fan_out = conv.out_channels * 9
    assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.head.bias.any()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def test_same_seed_same_weights():
    first, second = tiny("wrn-28-10").state_dict(), tiny("wrn-28-10").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_changed_shape_takes_the_shortcut_of_its_family():
    post = nets.build("resnet18", 10).trunk.blocks
    assert isinstance(post[0].shortcut, nn.Identity)
    assert [type(layer) for layer in post[2].shortcut] == [nn.Conv2d, nn.BatchNorm2d]
    pre = nets.build("preact-resnet18", 10).trunk.blocks
    assert pre[0].shortcut is None and isinstance(pre[2].shortcut, nn.Conv2d)


def test_preactivation_shortcut_starts_from_the_activated_input():
    block = tiny("wrn-28-10").trunk.blocks[0]
    x = torch.randn(2, block.bn1.num_features, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), block.shortcut(torch.relu(block.bn1(x))))


@pytest.mark.parametrize(("channels", "width", "expected"), [(64, 1, 64), (64, 0.125, 8), (16, 0.1, 4), (64, 0.4, 26)])
def test_scale_channels(channels, width, expected):
    assert scale_channels(channels, width) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet81"}, ["'resnet81'", "did you mean 'resnet18'", "wrn-28-10"]),
        ({"normalize": "cifar11"}, ["normalize", "'cifar11'", "cifar10", "imagenet"]),
        ({"normalize": ([0.5, 0.5], [1.0, 1.0])}, ["normalize", "2 channels", "3"]),
        ({"normalize": (0.5, 0.2)}, ["normalize", "(0.5, 0.2)", "pair (mean, std)"]),
        ({"normalize": ([0.5], [0.0])}, ["normalize", "std", "above 0"]),
        ({"width": 0}, ["width", "0", "above 0"]),
        ({"width": float("nan")}, ["width", "nan"]),
        ({"num_classes": 0}, ["num_classes", "0"]),
        ({"image_size": 8, "name": "lenet5"}, ["image_size", "8", "12"]),
    ],
)
def test_refusals_name_value_and_allowed(options, words):
    arguments = {"name": "resnet18", "num_classes": 10, **options}
    with pytest.raises(ConfigError) as caught:
        nets.build(arguments.pop("name"), arguments.pop("num_classes"), **arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.long
def test_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None; import moat.models.nets; moat.models.nets.build('resnet18', 10)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
