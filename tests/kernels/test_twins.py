"""Every fast twin equals its definition in ``moat.models``: values, gradients, statistics."""

import copy
import itertools

import pytest
import torch
from torch import nn

from moat import models
from moat.kernels import AttackCopy, for_attack, for_training
from moat.models import ChannelExpertConv2d, MoeCnn, build_mixture, build_moe_cnn
from moat.models.moe.backbones import MoeBasicBlock
from moat.models.moe.norms import ExpertBatchNorm2d
from moat.models.nets.masked import MaskedConv2d, mask_filters

SIZE = 16


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal to 1e-12 of the tensor's largest entry, or of 1."""
    assert ours.shape == theirs.shape
    worst, scale = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    assert worst <= 1e-12 * scale, f"differs by {worst:.1e} where the largest entry is {scale:.1e}"


def net(arch: str = "resnet18") -> nn.Module:
    return models.build(arch, 3, width=1 / 16, image_size=SIZE)


def moe(arch: str = "resnet18", experts: int = 2, **options) -> nn.Module:
    return build_moe_cnn(arch, 3, experts=experts, width=1 / 32, **options)


def mixture(kind: str, **options) -> nn.Module:
    return build_mixture(kind, "resnet18", 3, width=1 / 16, image_size=SIZE, **options)


MODELS = {
    "resnet18": net,
    "wrn-28-10": lambda: net("wrn-28-10"),
    "lenet5": lambda: net("lenet5"),
    "masked": lambda: mask_filters(net(), 0.5),
    "moe": moe,
    "moe, 4 experts": lambda: moe(experts=4, ratio=0.25),
    "moe, dcar": lambda: moe(router="dcar"),
    "moe, norm per expert": lambda: moe(bn="per_expert"),
    "moe wrn": lambda: moe("wrn-28-10"),
    "moe wrn, norm per expert": lambda: moe("wrn-28-10", 4, bn="per_expert"),
    "dwf": lambda: mixture("dwf", experts=3),
    "sramoe": lambda: mixture("sramoe"),
    "soe": lambda: mixture("soe", experts=2),
    "mocse": lambda: mixture("mocse"),
}


# One of each kind of layer that has a twin.
FEW = ("resnet18", "masked", "moe", "moe, norm per expert", "moe wrn", "dwf", "soe", "mocse")


def made(name: str) -> nn.Module:
    """In float64; if routed, with images for more than one expert."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    if isinstance(model, MoeCnn):
        nn.init.normal_(model.head.weight)
        # Without this all images have the same expert.
        mean = copy.deepcopy(model).route_logits(images()).mean(0).detach()
        model.router.register_forward_hook(lambda module, given, scores: scores - mean)
        assert len(copy.deepcopy(model).route_logits(images()).argmax(1).unique()) > 1
    return model


def images(count: int = 12) -> torch.Tensor:
    return draw(count, 3, SIZE, SIZE, seed=2).sigmoid()


def outcome(model: nn.Module, parameters: bool = True) -> list[torch.Tensor]:
    """Logits, the gradients of images and parameters (the router's among them), and buffers after the pass."""
    x = images().requires_grad_()
    logits = model(x)
    inputs = (x, *model.parameters()) if parameters else (x,)
    # Not linear in the logits: the gates' gradients count.
    gradients = torch.autograd.grad(logits.square().sum(), inputs, allow_unused=True, materialize_grads=True)
    return [logits.detach(), *gradients, *(buffer.double() for buffer in model.buffers() if parameters)]


@pytest.mark.brief(keep=lambda case: case["training"] or case["name"] in FEW)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_twin_for_training_equals_its_definition(name, training):
    definition = made(name).train(training)
    twin = for_training(copy.deepcopy(definition))
    for ours, theirs in zip(outcome(twin), outcome(definition), strict=True):
        assert_same(ours, theirs)


@pytest.mark.brief(keep=lambda case: case["name"] in FEW and case["trained_by"] == "twin" or case["name"] == "moe")
@pytest.mark.parametrize("trained_by", ["definition", "twin"])
@pytest.mark.parametrize("name", MODELS)
def test_the_copy_for_attacks_equals_its_definition(name, trained_by):
    definition = made(name).train()
    definition(images())  # statistics of batch norm that are not those of a fresh net
    definition.eval()
    trained = copy.deepcopy(definition)
    copied = for_attack(for_training(trained) if trained_by == "twin" else trained, images())
    assert copied is not definition and type(copied).__mro__.count(type(definition)) == 1
    for ours, theirs in zip(outcome(copied, False), outcome(definition, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wrap", [for_training, lambda conv: AttackCopy(conv).refresh()], ids=["training", "attack"])
@pytest.mark.parametrize("routes", list(itertools.product((0, 1, 2), repeat=3)), ids=str)
def test_the_layer_by_itself_equals_its_definition_for_every_split(routes, wrap, channels_last):
    torch.manual_seed(0)
    definition = ChannelExpertConv2d(3, 5, 3, experts=3, stride=2, padding=1).double()
    twin = wrap(copy.deepcopy(definition))
    x, gate, route = draw(3, 3, 7, 7, seed=1), torch.ones(3, dtype=torch.float64), torch.tensor(routes)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    found = []
    for conv in (twin, definition):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_(), gate.clone().requires_grad_()
        y = conv(given[0], route, given[1])
        inputs = (*given, conv.weight) if conv.weight.requires_grad else given
        found.append((y.detach(), *torch.autograd.grad(y, inputs, draw(3, 5, 4, 4, seed=2))))
    for ours, theirs in zip(*found, strict=False):
        assert_same(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_per_expert_by_itself_equals_its_definition(training):
    definition = ExpertBatchNorm2d(4, 3).double().train(training)
    twin = for_training(copy.deepcopy(definition))
    x, route = draw(7, 4, 3, 3, seed=1), torch.tensor([2, 0, 2, 2, 0, 0, 2])
    assert_same(twin(x, route), definition(x, route))
    for ours, theirs in zip(twin.buffers(), definition.buffers(), strict=True):
        assert_same(ours.double(), theirs.double())


@pytest.mark.parametrize("name", ["resnet18", "masked", "moe, norm per expert", "moe wrn", "dwf", "soe"])
def test_for_training_keeps_everything_but_the_computation(name):
    torch.manual_seed(0)
    model = MODELS[name]().requires_grad_(False)
    called = []
    model.register_forward_hook(lambda *_: called.append(1))
    before = {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "parameters": [(name, id(parameter)) for name, parameter in model.named_parameters()],
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "classes": [type(module) for module in model.modules()],
    }
    assert for_training(for_training(model)) is model
    assert [(name, id(module)) for name, module in model.named_modules()] == before["modules"]
    assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == before["parameters"]
    assert list(model.state_dict()) == list(before["state"])
    assert all(torch.equal(tensor, before["state"][name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    classes = [type(module) for module in model.modules()]
    assert classes != before["classes"] and all(map(issubclass, classes, before["classes"]))
    model(torch.rand(2, 3, SIZE, SIZE))
    assert called == [1]


class Own(ChannelExpertConv2d):
    """A user's variant: twice the output."""

    def forward(self, x, route, gate=None):
        return 2 * super().forward(x, route, gate)


def test_a_subclass_of_a_definition_keeps_its_forward():
    torch.manual_seed(0)
    definition = Own(3, 4, 3, experts=2).double()
    x, route = draw(5, 3, 6, 6, seed=1), torch.tensor([1, 0, 0, 1, 1])
    expected = definition(x, route)
    for twin in (for_training(copy.deepcopy(definition)), AttackCopy(definition).refresh()):
        assert type(twin) is Own
        assert_same(twin(x, route), expected)


def test_a_block_with_such_a_convolution_is_not_folded_into_it():
    torch.manual_seed(0)
    definition = made("moe").train()
    definition(images())
    definition.eval().trunk.blocks[0].conv1.__class__ = Own
    copied = for_attack(definition)
    for ours, theirs in zip(outcome(copied, False), outcome(definition, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


class OwnBlock(MoeBasicBlock):
    """A user's block, which looks at the route."""

    def forward(self, x, route, gate):
        return super().forward(x, route, gate) * (1 + route.view(-1, 1, 1, 1))


@pytest.mark.parametrize("wrap", [for_training, for_attack])
def test_a_block_that_looks_at_the_route_gets_one(wrap):
    definition = made("moe").train()
    definition(images())
    definition.eval().trunk.blocks[1].__class__ = OwnBlock
    for ours, theirs in zip(outcome(wrap(copy.deepcopy(definition)), False), outcome(definition, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.long
def test_nets_of_torchvision_train_with_its_convolutions():
    torch.manual_seed(0)
    model = for_training(models.build("resnet50", 3, width=1 / 16))
    assert {type(module) for module in model.modules() if isinstance(module, nn.Conv2d)} == {nn.Conv2d}
    masked = for_training(mask_filters(models.build("resnet18", 3, width=1 / 16), 0.5))
    assert not any(type(module) is MaskedConv2d for module in masked.modules())


def test_a_copy_of_a_copy_is_the_copy():
    model = made("moe").eval()
    copied = for_attack(model)
    for ours, theirs in zip(outcome(for_attack(copied), False), outcome(copied, False), strict=True):
        assert torch.equal(ours, theirs)
