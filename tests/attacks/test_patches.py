"""Which models may be taken apart, and that nets computed window by window give the logits of whole images."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat import attacks
from moat.attacks.autoattack.adapter import Attacked, examples_are_independent
from moat.attacks.autoattack.patches import FullForward, PatchForward, Window, evaluator
from moat.kernels import for_attack, packed
from moat.models import nets


class Odd(nn.Module):
    """A convolutional net with one peculiarity."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.change = nn.Conv2d(3, 6, 3), nn.Linear(6, 10), change
        self.tilt = nn.Parameter(torch.rand(14))

    def forward(self, x):
        return self.head(self.change(self, self.conv(x)).mean((2, 3)))


ODD = {
    "plain": (lambda net, z: F.relu(z), True, PatchForward),
    "random": (lambda net, z: z + 0.1 * torch.randn_like(z), False, None),
    "drawn while traced": (lambda net, z: z + 0.1 * torch.rand(1), False, FullForward),
    "of the batch": (lambda net, z: z - z.mean(0), False, None),
    "of the data": (lambda net, z: z * 2 if float(z.sum()) > 0 else z * 3, True, FullForward),
    "of the place": (lambda net, z: z * net.tilt, True, PatchForward),
    "in place": (lambda net, z: z.relu_(), True, FullForward),
    "in place by a function": (lambda net, z: F.relu(z, inplace=True), True, PatchForward),
    "in place and used again": (lambda net, z: F.relu(z, inplace=True) + z, True, FullForward),
}


@pytest.mark.parametrize("name", ODD)
def test_which_models_may_be_taken_apart(name):
    change, independent, kind = ODD[name]
    model, x = Odd(change).eval().requires_grad_(False), torch.rand(5, 3, 16, 16)
    state = torch.get_rng_state()
    assert examples_are_independent(Attacked(model), x) == independent
    assert torch.equal(torch.get_rng_state(), state)
    if kind is None:
        return
    with torch.no_grad():
        values = evaluator(Attacked(model), model, x.clone(), smallest=Window(0, 0, 2, 2))
        assert type(values) is kind
        if independent:
            assert_same_logits(values, model)


def assert_same_logits(values, model, tolerance=1e-5):
    """All window sizes and places, some accepted, some images forgotten: always the logits of the whole image."""
    torch.manual_seed(0)
    size = values.images.shape[-1]
    for number in range(60):
        side = int(torch.randint(1, size // (1 if number < 10 else 3) + 1, (1,)))
        corner = [0, size - side, int(torch.randint(0, size - side + 1, (1,)))]
        window = Window(corner[number % 3], corner[number // 3 % 3], side, side)
        patch = torch.rand(len(values.images), 3, side, side)
        changed = values.images.clone()
        window.of(changed).copy_(patch)
        found, expected = values.propose(window, patch), model(changed)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert (found - values.logits[: len(found)]).abs().max() > 100 * tolerance or side < 3
        rows = torch.tensor([number % len(changed)])
        values.accept(rows)
        assert torch.equal(values.images[rows], changed[rows])
        if number == 40:
            values.keep(torch.tensor([0, 2]))


@pytest.mark.brief(keep=lambda case: case["arch"] == "vgg19" or case["arch"] == "preact-resnet18" and case["worth"])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {"width": 1 / 8}), ("resnet50", {"width": 1 / 8}), ("preact-resnet18", {"width": 1 / 8}),
        ("wrn-28-10", {"width": 1 / 10}), ("vgg19", {"width": 1 / 8}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("worth", [0, packed.MIN_WEIGHTS_TO_PACK])
def test_patches_give_the_logits_of_whole_images(arch, options, worth, monkeypatch):
    monkeypatch.setattr(packed, "MIN_WEIGHTS_TO_PACK", worth)
    torch.manual_seed(0)
    model = nets.build(arch, 10, image_size=32, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    nn.init.normal_(model.head.weight)
    model = model.eval().requires_grad_(False)
    # Fresh nets of many layers hardly look at their input.
    model.head.weight /= model(torch.rand(8, 3, 32, 32)).std(0).mean()
    for net in (model, attacks.for_attack(model)):
        with torch.no_grad():
            values = evaluator(net, net, torch.rand(3, 3, 32, 32), smallest=Window(0, 0, 3, 3))
            assert type(values) is PatchForward and values.cache
            assert_same_logits(values, net, 1e-4)


def test_patches_of_a_copy_in_low_precision_are_near_those_of_whole_images():
    torch.manual_seed(0)
    net = for_attack(nets.build("resnet18", 10, image_size=32, width=1 / 8), dtype=torch.bfloat16)
    with torch.no_grad():
        searched = Attacked(net)
        values = evaluator(searched, net, torch.rand(3, 3, 32, 32), smallest=Window(0, 0, 3, 3))
        assert type(values) is PatchForward and values.cache
        window, patch = Window(3, 5, 9, 9), torch.rand(3, 3, 9, 9)
        changed = values.images.clone()
        window.of(changed).copy_(patch)
        found, expected = values.propose(window, patch), net(changed)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()
