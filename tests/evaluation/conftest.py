"""Small nets on real digits: one trained as usual, one trained against PGD."""

import pytest
import torch
from torch.nn import functional as F

from moat import nets
from moat.attacks import pgd


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def _train(digits, attack, epochs=4):
    torch.manual_seed(0)
    model = nets.build("resnet18", 10, width=1 / 16, image_size=16, normalize=([0.3], [0.35]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = digits[0][:1280], digits[1][:1280]
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(attack(model, x[part], y[part])), y[part]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def undefended(digits):
    return _train(digits, lambda model, x, y: x)


@pytest.fixture(scope="session")
def defended(digits):
    return _train(digits, lambda model, x, y: pgd(model, x, y, eps=12 / 255, step_size=6 / 255, steps=3), epochs=6)


@pytest.fixture(scope="session")
def test_images(digits):
    """120 test images, which no net was trained on, and their labels."""
    return digits[0][-120:].contiguous(), digits[1][-120:]
