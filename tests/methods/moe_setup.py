"""MoE-CNN methods on nets of 4 to 16 channels and on real digits, in memory."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import moat.methods
from moat.config.project import Project
from moat.config.recipes import merge, simplest
from moat.methods.base import Method, Step

torch.set_num_threads(1)
PROJECT = Project(Path(__file__).parents[2])
# But variants that differ in a budget, or in the space of their attacks (test_training_spaces.py), only.
METHODS = [
    name
    for name in PROJECT.names("methods")
    if name.startswith(("pgd-at-moe", "advmoe", "dramoe"))
    and simplest(PROJECT, "smoke", name) == name
    and "attack_space" not in PROJECT.method(name)
]
ALTERNATING = [name for name in METHODS if name not in ("pgd-at-moe", "dramoe-norgat")]


def make(name: str, *, seed: int = 0, double: bool = False, **changes) -> Method:
    """The method with its recipe, on a tiny ResNet-18 for 8x8 images."""
    recipe = merge(PROJECT.method(name), {"attack": {"steps": 2, "step_size": 0.02}})
    recipe = merge(recipe, changes)
    torch.manual_seed(seed)
    options = {**recipe["model"], "width": 1 / 16, "image_size": 8, "in_channels": 1, "normalize": [[0.3], [0.35]]}
    kind = moat.methods.get(recipe["class"])
    model = kind.build(arch="resnet18", num_classes=10, options=options)
    return kind(model.double() if double else model, recipe)


def digits(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, 8, 8) in [0,1] and their labels."""
    content = load_digits()
    return torch.tensor(content.images[:count] / 16, dtype=dtype)[:, None], torch.tensor(content.target[:count])


def step(batch: int = 0, epoch: int = 0, epochs: int = 5) -> Step:
    return Step(seed=0, epoch=epoch, epochs=epochs, batch=batch, batches=1000, device=torch.device("cpu"))


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) per example from probabilities, as the formula says."""
    p, q = F.softmax(p, 1), F.softmax(q, 1)
    return (p * (p / q).log()).sum(1)
