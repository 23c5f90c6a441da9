"""A model from elsewhere behind a guard: it can change neither images nor the process, and fails in one line."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from moat import models
from moat.attacks.parts.views import views_of
from moat.base.errors import ConfigError, DataError
from moat.base.signals import Stopped
from moat.models.guard import Guard, behind, guarded, is_foreign
from moat.models.outputs import predicted_class, with_gradient


class Elsewhere(nn.Module):
    """Somebody's net; ``answer`` says what it does with the images (B, 3, 8, 8) and its logits."""

    def __init__(self, answer=lambda net, x: net(x)):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.answer = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), answer

    def forward(self, x):
        return self.answer(self.net, x)


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CHANNELS_LAST = X.to(memory_format=torch.channels_last)


def raises(error):
    def answer(net, x):
        raise error

    return answer


def parses_arguments(net, x):
    raise SystemExit(2)


FAILS = {
    "tuple": (lambda net, x: (net(x), x), "returns a tuple; logits (4, classes) are needed"),
    "list": (lambda net, x: [net(x)], "returns a list; logits (4, classes) are needed"),
    "dict": (lambda net, x: {"logits": net(x)}, "returns a dict; logits (4, classes) are needed"),
    "numpy": (lambda net, x: net(x).detach().numpy(), "returns a ndarray; logits (4, classes) are needed"),
    "sparse": (
        lambda net, x: net(x).to_sparse(),
        "returns a tensor of layout torch.sparse_coo; logits (4, classes) are needed",
    ),
    "nothing": (lambda net, x: None, "returns None; logits (4, classes) are needed"),
    "classes": (lambda net, x: net(x).argmax(1), "returns int64 (4,); logits (4, classes) are needed"),
    "one by one": (lambda net, x: net(x)[..., None, None], "returns (4, 10, 1, 1); logits (4, classes) are needed"),
    "squeezed": (lambda net, x: net(x[:1]).squeeze(), "returns (10,); logits (4, classes) are needed"),
    "one logit": (lambda net, x: net(x)[:, :1], "returns (4, 1); at least 2 classes are needed"),
    "exception": (raises(KeyError("head")), "fails (KeyError: 'head')"),
    "many lines": (raises(RuntimeError("one\n  two\n")), "fails (RuntimeError: one two)"),
    "control characters": (raises(RuntimeError("\x1b[31mred\x07\x00")), "fails (RuntimeError: [31mred)"),
    "long": (raises(ValueError("x" * 1000)), f"fails (ValueError: {'x' * 300}…)"),
    "exit": (lambda net, x: sys.exit("no GPU"), "ends Python (sys.exit('no GPU'))"),
    "argparse": (parses_arguments, "ends Python (sys.exit(2))"),
}


@pytest.mark.parametrize(("answer", "words"), FAILS.values(), ids=FAILS)
def test_whatever_is_no_logits_is_one_line(answer, words):
    with pytest.raises(DataError) as caught:
        Guard(Elsewhere(answer), "--model mynet:make")(X)
    given = "--model mynet:make: given images float32 (4, 3, 8, 8) in [0, 1]"
    assert str(caught.value) == f"{given}, the model {words}"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(75), torch.OutOfMemoryError(), ConfigError("eps")])
def test_what_is_not_the_models_own_fault_passes(error):
    with pytest.raises(type(error)) as caught:
        Guard(Elsewhere(raises(error)))(X)
    assert caught.value is error


IN_PLACE = {
    "normalises": (lambda net, x: net(x.sub_(0.5).div_(0.25)), lambda net, x: net((x - 0.5) / 0.25)),
    "first layer": (lambda net, x: net(nn.ReLU(inplace=True)(x.mul_(-1))), lambda net, x: net((-x).relu())),
    "clamp": (lambda net, x: net(x.clamp_(0.2, 0.8)), lambda net, x: net(x.clamp(0.2, 0.8))),
    "view": (lambda net, x: net[1](x.view(len(x), -1)), lambda net, x: net(x)),
}  # fmt: skip


@pytest.mark.parametrize(("inside", "outside"), IN_PLACE.values(), ids=IN_PLACE)
def test_it_works_on_copies(inside, outside):
    model, x = Guard(Elsewhere(inside)), CHANNELS_LAST.clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        torch.testing.assert_close(model(x), Elsewhere(outside)(X))
    assert torch.equal(x, X)
    # A leaf, as attacks give it.
    leaf, other = x.requires_grad_(), X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    (expected,) = torch.autograd.grad(Elsewhere(outside)(other)[:, 0].sum(), other)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(leaf.detach(), X)


def no_grad(net, x):
    with torch.no_grad():
        return net(x)


def inference(net, x):
    with torch.inference_mode():
        return net(x)


def switched_off(net, x):
    torch.set_grad_enabled(False)
    return net(x)


WITHOUT_GRADIENT = {
    "no_grad": no_grad,
    "inference_mode": inference,
    "switched off": switched_off,
    "detached": lambda net, x: net(x.detach()),
    "numpy": lambda net, x: net(torch.from_numpy(np.round(x.detach().numpy()))),
    "constant": lambda net, x: torch.zeros(len(x), 10),
    "of something else": lambda net, x: torch.ones(len(x), 10, requires_grad=True) * 2,
}


@pytest.mark.parametrize("answer", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT)
def test_a_model_without_a_gradient_has_the_gradient_zero(answer):
    x = X.clone().requires_grad_()
    logits = Guard(Elsewhere(answer))(x)
    assert torch.is_grad_enabled() and logits.requires_grad and not logits.is_inference()
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


class Own(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return NotImplemented


def test_its_output_is_a_plain_tensor():
    assert type(Guard(Elsewhere(lambda net, x: net(x).detach().as_subclass(Own)))(X)) is torch.Tensor


def test_its_output_is_a_copy():
    kept = torch.zeros(4, 10)
    model = Guard(Elsewhere(lambda net, x: kept.copy_(net(x).detach())))
    first = model(X)
    before = first.clone()
    model(1 - X)
    assert torch.equal(first, before)


def test_exactly_what_moat_did_not_write_is_guarded():
    own = models.build("lenet5", 10, image_size=16)
    mixture = models.build_moe_cnn("resnet18", 10, experts=2, width=1 / 16)
    assert guarded(own) is own and guarded(mixture) is mixture
    mixture.extra = Elsewhere()
    for foreign in (Elsewhere(), nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), nn.Sequential(own), mixture):
        assert is_foreign(foreign) and behind(guarded(foreign)) is foreign
    guard = guarded(Elsewhere())
    assert guarded(guard) is guard and guard.name == "Elsewhere"


def raises_views():
    raise KeyError("views")


class FailingProperty(Elsewhere):
    @property
    def route_logits(self):
        raise ValueError("not built yet")


def test_a_property_that_fails_is_one_line():
    with pytest.raises(
        DataError, match="FailingProperty: the attribute 'route_logits' fails .ValueError: not built yet"
    ):
        hasattr(Guard(FailingProperty()), "route_logits")


class Routed(Elsewhere):
    def __init__(self):
        super().__init__()
        self.router = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        self.experts = nn.ModuleList([Elsewhere(), Elsewhere(lambda net, x: net(x.mul_(0)))])

    def route_logits(self, x):
        return self.router(x.mul_(2))

    def attack_views(self):
        return {"first": self.experts[0], "second": self.experts[1]}


def test_other_attributes_are_the_models_and_what_takes_images_is_guarded():
    model, x = Guard(Routed()), X.clone()
    assert model.router is model.module.router and not hasattr(model, "normalize") and model.net is model.module.net
    with torch.no_grad():
        assert torch.equal(model.route_logits(x), model.router(2 * X)) and torch.equal(x, X)
        assert list(views_of(model)) == ["straight-through", "detached", "first", "second"]
        torch.testing.assert_close(views_of(model)["second"].module(x), model.experts[1].net(0 * X))
        torch.testing.assert_close(views_of(model)["detached"].module(x), model(x))
    assert torch.equal(x, X)
    model.module.attack_views = raises_views
    with pytest.raises(DataError, match=r"Routed: attack_views\(\) fails \(KeyError: 'views'\)"):
        views_of(model)
    model.module.attack_views = lambda: {"first": "a string"}
    with pytest.raises(DataError, match="Routed, view first: a torch.nn.Module is needed, not a str"):
        model.attack_views()
    model.module.route_logits = lambda x: x.mean((1, 2, 3))
    with pytest.raises(DataError, match=r"route_logits returns \(4,\); scores \(4, experts\) are needed"):
        model.route_logits(x)


def test_a_guard_is_a_module():
    model = Guard(Elsewhere())
    calls = []
    with model.register_forward_pre_hook(lambda *call: calls.append(call)):
        model(X)
    assert len(calls) == 1 and len(list(model.parameters())) == 2
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), model(X)) and copied.net is not model.net
    assert model.train().module.training and not model.eval().module.training


@pytest.mark.parametrize(
    ("logits", "predicted"),
    [
        ([0.0, 1e-8, 0.0], 1),
        ([-1e-9, 0.0, -1e-9], 1),
        ([2.0, 2.0, 1.0], 0),
        ([0.0, -torch.inf, -1.0], 0),
        ([0.0, torch.nan, 1.0], -1),
        ([0.0, torch.inf, 1.0], -1),
        ([-torch.inf] * 3, -1),
    ],
)
def test_the_predicted_class_is_that_of_the_highest_logit(logits, predicted):
    assert predicted_class(torch.tensor([logits])).tolist() == [predicted]


def test_a_value_with_a_gradient_keeps_it():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(with_gradient((3 * x).flatten(1).sum(1), x).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 3))
