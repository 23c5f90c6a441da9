"""The small ResNet that tests of attacks and of evaluations train on real digits."""

import torch
from double import double
from torch import nn
from torch.nn import functional as F

from moat.models import nets


def train(digits, attack=lambda model, x, y: x, epochs=4) -> nn.Module:
    """A ResNet-18 of 4 to 32 channels trained on what ``attack`` makes of 1,280 digits, in eval mode."""
    x, y = digits[0][:1280].double(), digits[1][:1280]
    torch.manual_seed(0)
    with double():
        model = nets.build("resnet18", 10, width=1 / 16, image_size=16, normalize=([0.3], [0.35]))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(epochs):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(attack(model, x[part], y[part])), y[part]).backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.float().eval()
