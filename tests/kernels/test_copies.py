"""The copy for attacks is made once per model, and again after the model has changed."""

import gc
import weakref

import pytest
import torch
from torch import nn

from moat.kernels import attack_copy
from moat.models import nets

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A net with a factor that is neither a parameter nor a buffer."""

    def __init__(self):
        super().__init__()
        self.net, self.scale = nets.build("resnet18", 10, width=1 / 16), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.net(x)


def step(model: Scaled) -> None:
    with torch.no_grad():
        model.net.trunk.stem[0].weight.mul_(2)


def statistics(model: Scaled) -> None:
    model.train()(X)
    model.eval()


def replaced(model: Scaled) -> None:
    model.net.head = nn.Linear(model.net.head.in_features, 10)


def number(model: Scaled) -> None:
    model.scale = 3.0


@pytest.fixture
def model() -> Scaled:
    torch.manual_seed(0)
    return Scaled().eval()


def test_the_copy_of_an_unchanged_model_is_made_once(model):
    first = attack_copy(model, X)
    assert first is not model
    assert attack_copy(model, X) is first
    assert attack_copy(model, X[:2]) is first


@pytest.mark.brief(keep=lambda case: case["change"] in (step, statistics))
@pytest.mark.parametrize("change", [step, statistics, replaced, number])
def test_a_changed_model_is_copied_again(model, change):
    first = attack_copy(model, X)
    change(model)
    again = attack_copy(model, X)
    assert again is not first
    with torch.no_grad():
        torch.testing.assert_close(again(X), model(X), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_an_unused_model_is_freed():
    model = Scaled().eval()
    attack_copy(model, X)
    here = weakref.ref(model)
    del model
    gc.collect()
    assert here() is None
