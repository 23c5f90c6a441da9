"""A small net with batch norm, trained on real digits, and images that it gets right."""

import pytest
import torch
from torch.nn import functional as F

from moat import nets


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(digits):
    """A trained ResNet-18 of 4 to 32 channels, in eval mode. Tests that change it must restore it."""
    torch.manual_seed(0)
    model = nets.build("resnet18", 10, width=1 / 16, image_size=16, normalize=([0.3], [0.35]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = digits[0][:1280], digits[1][:1280]
    for _ in range(4):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture(scope="session")
def batch(digits, trained):
    """64 test images that the trained net gets right, with their labels."""
    x, y = digits[0][1280:], digits[1][1280:]
    with torch.no_grad():
        right = trained(x).argmax(1) == y
    assert right.float().mean() > 0.85
    return x[right][:64].contiguous(), y[right][:64]
