"""The nets of torchvision and timm: what is the library's, what was changed, and that they train."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

import moat.methods
from moat.attacks import for_attack
from moat.base.errors import ConfigError
from moat.base.torchvision_ops import library
from moat.commands.cli import main
from moat.config.project import Project
from moat.config.recipes import resolve_run
from moat.kernels.folding import foldable
from moat.methods.base import Step
from moat.models import nets
from moat.models.nets.classifier import scale_channels
from moat.models.nets.zoo import NETS
from project_copy import copy_project

ROOT = Path(__file__).parents[2]


@functools.cache
def vision():
    return library("torchvision.models", user="the test")


def of_vision(name, **fixed):
    """A function that builds torchvision's net; importing that library takes seconds, which other tests need not."""
    return lambda **options: getattr(vision(), name)(**fixed, **options)


# The library's own net; the layers that are not its own here; pixels that are left of 32x32, and behind which layer.
LIBRARY = {
    "vgg19": (of_vision("vgg19_bn"), {"classifier"}, 1, "features"),
    "resnet50": (of_vision("resnet50"), {"conv1", "fc"}, 4, "layer4"),
    "densenet121": (of_vision("densenet121"), {"features.conv0", "classifier"}, 4, "features"),
    "densenet169": (of_vision("densenet169"), {"features.conv0", "classifier"}, 4, "features"),
    "googlenet": (
        of_vision("googlenet", aux_logits=False, init_weights=False),
        {"conv1", "conv2", "conv3", "fc"},
        8,
        "inception5b",
    ),
    "inception-v3": (of_vision("inception_v3", aux_logits=False, init_weights=False), {"fc"}, 7, "Mixed_7c"),
    "xception": (lambda: library("timm", user="the test").create_model("legacy_xception"), {"fc"}, 4, "act4"),
    "mobilenet-v2": (of_vision("mobilenet_v2"), {"classifier"}, 4, "features"),
    "efficientnet-b0": (of_vision("efficientnet_b0"), {"classifier"}, 2, "features"),
}
NAMES = sorted(LIBRARY)
# A chain; depthwise convolutions, and the net of timm.
few_nets = pytest.mark.brief(keep=lambda case: case["name"] in ("vgg19", "xception"))


def tiny(name, seed=0, **options):
    torch.manual_seed(seed)
    return nets.build(name, 10, **{"width": 1 / 16, "image_size": 8, **options})


def shapes(net, without=()):
    """Shape of each weight and buffer that does not belong to the layers ``without``."""
    owned = tuple(f"{name}." for name in without)
    return {key: tuple(value.shape) for key, value in net.state_dict().items() if not key.startswith(owned)}


def test_every_net_of_the_zoo_is_compared_with_the_librarys():
    assert sorted(NETS) == NAMES


@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_all_but_the_named_layers_are_the_librarys(name):
    make, changed, _, _ = LIBRARY[name]
    with torch.device("meta"):
        library, ours = make(), nets.build(name, 10).trunk
    assert shapes(ours, changed) == shapes(library, changed)
    assert list(shapes(ours, changed)) == list(shapes(library, changed))


# The difference in parameters from the library's net of ten classes, by the shapes of the layers that were changed.
@pytest.mark.brief(keep=lambda case: case["name"] in ("vgg19", "resnet50", "googlenet"))
@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("vgg19", 512 * 10 - 25_088 * 4096 - 4096 - 4096 * 4096 - 4096 - 4096 * 10),
        ("resnet50", 64 * 3 * (9 - 49)),
        ("densenet121", 64 * 3 * (9 - 49)),
        ("densenet169", 64 * 3 * (9 - 49)),
        ("googlenet", 192 * (3 * 9 + 2) - 64 * (3 * 49 + 2) - 64 * (64 + 2) - 192 * (64 * 9 + 2)),
        ("inception-v3", 0),
        ("xception", 0),
        ("mobilenet-v2", 0),
        ("efficientnet-b0", 0),
    ],
)
def test_parameters_differ_from_the_librarys_by_the_stem(name, difference):
    with torch.device("meta"):
        library, ours = LIBRARY[name][0](), nets.build(name, 10)
    head = [module for module in library.modules() if isinstance(module, nn.Linear)][-1]
    ten_classes = (10 - head.out_features) * (head.in_features + 1)
    assert nets.count_parameters(ours) == nets.count_parameters(library) + ten_classes + difference


@pytest.mark.parametrize(("name", "image_size"), [("efficientnet-b0", 96)])
def test_at_large_images_it_computes_what_the_librarys_computes(name, image_size):
    torch.manual_seed(0)
    library = LIBRARY[name][0](num_classes=10).eval()
    ours = nets.build(name, 10, image_size=image_size, normalize=None).eval()
    state = library.state_dict()
    ours.head.load_state_dict({key: state.pop(f"classifier.1.{key}") for key in ("weight", "bias")})
    ours.trunk.load_state_dict(state)
    x = torch.rand(2, 3, image_size, image_size)
    torch.testing.assert_close(ours(x), library(x), rtol=0, atol=0)


@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_pixels_left_of_32x32(name):
    _, _, left, layer = LIBRARY[name]
    model, sizes = tiny(name, image_size=32).eval(), []
    model.trunk.get_submodule(layer).register_forward_hook(lambda module, inputs, output: sizes.append(output.shape))
    model(torch.rand(1, 3, 32, 32))
    assert [tuple(size[2:]) for size in sizes] == [(left, left)]


@pytest.mark.parametrize("width", [0.3])
@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_width_scales_every_convolution(name, width):
    def channels(net):
        convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        return [(conv.groups > 1, conv.in_channels, conv.out_channels, conv.groups) for conv in convolutions]

    with torch.device("meta"):
        full, scaled = channels(nets.build(name, 10)), channels(nets.build(name, 10, width=width))
    assert [row[0] for row in full] == [row[0] for row in scaled]
    for (depthwise, _, before, _), (_, taken, after, groups) in zip(full, scaled, strict=True):
        assert (taken == after == groups) if depthwise else (groups, after) == (1, scale_channels(before, width))


@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_pixel_of_grey_images(name):
    model = tiny(name, in_channels=1, normalize=None).double().eval()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    model(x).logsumexp(1).sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).flatten(1).float().mean() > 0.9


# DenseNet's batch norms stand before the convolutions: one in each layer and transition, and the last one stay.
@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_the_copy_that_attacks_use_is_the_net(name):
    model = tiny(name, image_size=16).double()
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    for _ in range(3):
        model(x)  # moves the running statistics of batch norm
    left = {"densenet121": 58 + 3 + 1, "densenet169": 82 + 3 + 1}.get(name, 0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) - len(list(foldable(model))) == left
    images = [x.clone().requires_grad_() for _ in range(2)]
    for net, image in zip((model.eval(), for_attack(model)), images, strict=True):
        net(image).square().sum().backward()
    size = images[0].grad.abs().max()
    torch.testing.assert_close(images[1].grad / size, images[0].grad / size, rtol=0, atol=1e-9)


@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_training_mode_draws_no_random_numbers(name):
    model, x = tiny(name).train(), torch.rand(4, 3, 8, 8)
    before = torch.get_rng_state()
    first, second = model(x), model(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.shape == (4, 10)


@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name):
    first, again, other = (tiny(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert all(value.isfinite().all() for value in first.values() if value.is_floating_point())
    assert all((value == 1).all() for key, value in first.items() if key.endswith("running_var"))


@few_nets
@pytest.mark.parametrize("name", NAMES)
def test_saved_weights_give_the_same_logits(name, tmp_path):
    model, other, x = tiny(name), tiny(name, seed=1).eval(), torch.rand(4, 3, 8, 8)
    model(x)  # moves the running statistics of batch norm
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(other(x), model.eval()(x), rtol=0, atol=0)


@few_nets
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["standard", "pgd-at"])
def test_one_training_step(name, method):
    recipe = resolve_run(Project(ROOT), "paper", dataset="cifar10", arch=name, method=method, seed=0)["recipe"]
    if "attack" in recipe:
        recipe["attack"] = {**recipe["attack"], "steps": 1}
    cls = moat.methods.get(method)
    torch.manual_seed(0)
    options = {"width": 1 / 16, "image_size": 8, "in_channels": 3, "normalize": "cifar10"}
    trained = cls(cls.build(arch=name, num_classes=10, options=options), recipe)
    trained.initialize({})
    trained.train_mode()
    trained.begin_epoch(0)
    before = {key: value.clone() for key, value in trained.model.named_parameters()}
    metrics = trained.update(torch.rand(8, 3, 8, 8), torch.arange(8), Step(0, 0, 1, 0, 10, torch.device("cpu")))
    assert metrics["loss"].isfinite()
    gradients = [parameter.grad for parameter in trained.model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert all(not torch.equal(before[key], value) for key, value in trained.model.named_parameters())


@pytest.mark.long
def test_plan_accepts_every_net(tmp_path, capsys):
    copy_project(tmp_path)
    study = yaml.safe_load((ROOT / "config/studies/unified.yaml").read_text())
    (arch,) = [axis for axis in study["tables"]["leaderboard"]["rows"] if axis["axis"] == "arch"]
    arch["points"] = [{"label": name, "arch": name} for name in NAMES]
    (methods,) = [axis for axis in study["tables"]["leaderboard"]["rows"] if axis["axis"] == "method"]
    methods["points"] = [{"label": name, "method": name} for name in ("standard", "pgd-at", "trades")]
    del study["figures"]
    (tmp_path / "config/studies/zoo.yaml").write_text(yaml.safe_dump(study))
    assert main(["--project", str(tmp_path), "plan", "--scale", "paper", "--studies", "zoo", "--json"]) == 0
    paths = [job["path"] for job in json.loads(capsys.readouterr().out)["jobs"] if job["kind"] == "run"]
    assert {path.split("/cifar10/")[1].split("/")[0] for path in paths} == set(NAMES)
    assert len(paths) == len(NAMES) * 3 * 3


@pytest.mark.parametrize("name", NAMES)
def test_images_too_small_are_refused(name):
    with pytest.raises(ConfigError, match="image_size: 7 is too small .*; at least 8"):
        tiny(name, image_size=7)


@pytest.mark.long
@pytest.mark.parametrize(("package", "name"), [("timm", "xception"), ("torchvision", "vgg19")])
def test_a_missing_library_is_named_only_where_it_is_needed(package, name):
    code = f"""
import sys
sys.modules[{package!r}] = None
from moat.base import errors
from moat.models import nets
assert {name!r} in nets.names()
try:
    nets.build({name!r}, 10)
except errors.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"this net is {package}'s" in done.stdout and f"`pip install {package}`" in done.stdout
