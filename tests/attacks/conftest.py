"""A small net with batch norm, trained on real digits, and images that it gets right."""

import copy

import pytest
import torch
from double import InDouble, double
from torch import nn
from torch.nn import functional as F

from moat import attacks
from moat.kernels import for_attack


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(digits_net):
    """A trained ResNet-18 of 4 to 32 channels, in eval mode. Tests that change it must restore it."""
    return copy.deepcopy(digits_net)


@pytest.fixture(scope="session")
def batch(digits, trained):
    """64 test images that the trained net gets right, with their labels."""
    x, y = digits[0][1280:], digits[1][1280:]
    with torch.no_grad():
        right = trained(x).argmax(1) == y
    assert right.float().mean() > 0.85
    return x[right][:64].contiguous(), y[right][:64]


@pytest.fixture(scope="session")
def defended(digits):
    """A small convolutional net trained against PGD for a moment: some examples fall to each component, some stay."""
    x, y, eps = digits[0][:1024].double(), digits[1][:1024], 12 / 255
    torch.manual_seed(0)
    with double():
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(5):
            for part in torch.randperm(len(x)).split(64):
                adversarial = attacks.pgd(model, x[part], y[part], eps=eps, step_size=eps / 2, steps=3)
                optimizer.zero_grad()
                F.cross_entropy(model(adversarial), y[part]).backward()
                optimizer.step()
    return model.float().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def in_double(defended, trained):
    """Name -> net in float64: what two implementations of an attack are compared on."""
    folded = for_attack(copy.deepcopy(trained).double())
    return {"defended": InDouble(defended), "resnet": InDouble(trained), "folded": InDouble(folded)}


@pytest.fixture(scope="session")
def few(digits):
    return digits[0][1100:1124].contiguous(), digits[1][1100:1124]
