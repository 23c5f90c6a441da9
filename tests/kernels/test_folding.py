"""The copy for attacks equals the model in value and gradient, and follows it through a training."""

import pytest
import torch
from torch import nn

from moat import models
from moat.attacks import AttackCopy, for_attack, pgd
from moat.kernels import packed
from moat.kernels.folding import foldable
from moat.models import ChannelExpertConv2d, build_mixture, build_moe_cnn
from moat.models.nets.masked import mask_filters
from moat.models.nets.pointwise import PixelsFirstConv2d

WIDTH, SIZE = 0.0625, 16


def net(arch, **options):
    return models.build(arch, 10, width=WIDTH, image_size=SIZE, **options)


class Shared(nn.Module):
    """Must not be folded: a convolution whose output is used twice, and a batch norm after two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.used_twice, self.norm, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        y = self.first(x)
        y = self.norm(self.second(torch.relu(self.norm(self.used_twice(y) + y))))
        return self.head(y.mean((2, 3)))


# model, number of batch norms in the copy, number in the model
MODELS = {
    "resnet18": (lambda: net("resnet18"), 0, 20),
    "wrn-28-10": (lambda: net("wrn-28-10"), 12, 25),
    "preact-resnet18": (lambda: net("preact-resnet18"), 9, 17),
    "lenet5": (lambda: net("lenet5"), 0, 0),
    "masked resnet18": (lambda: mask_filters(net("resnet18"), 0.5), 0, 20),
    "moe resnet18": (lambda: build_moe_cnn("resnet18", 10, width=0.125), 0, 40),
    "moe, 4 experts, dcar": (lambda: build_moe_cnn("resnet18", 10, width=0.125, experts=4, router="dcar"), 0, 40),
    "moe wrn-28-10": (lambda: build_moe_cnn("wrn-28-10", 10, width=0.0625), 13, 44),
    "moe, norm per expert": (lambda: build_moe_cnn("resnet18", 10, width=0.125, bn="per_expert"), 32, 56),
    "dwf": (lambda: build_mixture("dwf", "resnet18", 10, width=WIDTH, image_size=SIZE, experts=2), 0, 40),
    "sramoe": (lambda: build_mixture("sramoe", "resnet18", 10, width=WIDTH, image_size=SIZE), 0, 59),
    "soe": (lambda: build_mixture("soe", "resnet18", 10, width=WIDTH, image_size=SIZE, experts=2), 0, 40),
    "mocse": (lambda: build_mixture("mocse", "preact-resnet18", 3, width=WIDTH, image_size=SIZE), 27, 51),
    "shared": (Shared, 2, 2),
}  # fmt: skip


def trained(model: nn.Module) -> nn.Module:
    """With batch norms as after a training; in float64, in training mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.double().train()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)


def logits_and_gradient(model, x):
    x = x.clone().requires_grad_()
    logits = model(x)
    # Not a sum of logits: the gate's gradient must count.
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_equals_the_model_in_eval_mode(name, x):
    make, left, all_norms = MODELS[name]
    torch.manual_seed(0)
    model = trained(make())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied = for_attack(model, x)
    assert (norms(copied), norms(model)) == (left, all_norms)
    assert model.training and not copied.training and not any(p.requires_grad for p in copied.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.eval()
    for ours, theirs in zip(logits_and_gradient(copied, x), logits_and_gradient(model, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    if hasattr(model, "route_logits"):
        torch.testing.assert_close(copied.route_logits(x), model.route_logits(x), rtol=1e-10, atol=1e-12)


@pytest.mark.brief(keep=lambda case: case["name"] != "resnet18")
@pytest.mark.parametrize("name", ["resnet18", "moe resnet18", "masked resnet18", "soe"])
def test_packed_weights_change_no_result_and_follow_a_training(name, x, monkeypatch):
    monkeypatch.setattr(packed, "MIN_WEIGHTS_TO_PACK", 0)
    torch.manual_seed(0)
    # In float32, as oneDNN has no float64. The median, because a relu at 0 may go either way.
    model, x = trained(MODELS[name][0]()).float(), x.float()
    follower = AttackCopy(model)
    # Strided shortcuts of few channels choose their pixels first, and are not packed.
    kinds = (nn.Conv2d, ChannelExpertConv2d)
    convolutions = [m for m in follower.copy.modules() if isinstance(m, kinds) and type(m) is not PixelsFirstConv2d]
    assert convolutions and all(convolution.packed for convolution in convolutions)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        copied = follower.refresh()
        model.eval()
        for ours, theirs in zip(logits_and_gradient(copied, x), logits_and_gradient(model, x), strict=True):
            error = (ours - theirs).flatten(1).abs().amax(1) / theirs.abs().max()
            assert error.median() < 1e-5
        model.train()(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["resnet18", "moe resnet18", "masked resnet18", "soe"])
def test_copy_follows_a_training(name, x):
    torch.manual_seed(0)
    model = trained(MODELS[name][0]())
    follower = AttackCopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()(x).square().sum().backward()
        optimizer.step()
    stale = follower.copy(x)
    fresh, expected = follower.refresh()(x), model.eval()(x)
    torch.testing.assert_close(fresh, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(stale, expected, rtol=1e-3)


def test_attack_finds_the_same_examples_on_the_copy(x):
    torch.manual_seed(0)
    model = trained(net("resnet18")).eval()
    y = model(x).argmax(1)
    attacks = [
        pgd(m, x, y, eps=8 / 255, step_size=2 / 255, steps=5, generator=torch.Generator().manual_seed(0))
        for m in (model, for_attack(model))
    ]
    torch.testing.assert_close(*attacks, rtol=0, atol=1e-12)


def test_pairs_are_named_by_module():
    pairs = list(foldable(net("resnet18")))
    assert pairs[:2] == [("trunk.stem.0", "trunk.stem.1"), ("trunk.blocks.0.conv1", "trunk.blocks.0.bn1")]
    assert len(pairs) == 20


class Uncopied(nn.Module):
    """Has an attribute that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.net, self.generator = net("lenet5"), (i for i in range(3))

    def forward(self, x):
        return self.net(x)


class DataDependent(nn.Module):
    """Uses the convolution without its batch norm, which the graph does not show."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        if float(x.sum()) < 0:
            return self.head(self.block(x).mean((2, 3)))
        return self.head(self.block[0](x).mean((2, 3)))


@pytest.mark.parametrize(("make", "said"), [(Uncopied, "cannot be copied"), (DataDependent, "has other logits")])
def test_a_model_that_cannot_be_copied_or_folded_is_attacked_as_it_is(make, said, x, caplog):
    torch.manual_seed(0)
    model = trained(make())
    assert for_attack(model, x) is model
    assert said in caplog.text and model.training
