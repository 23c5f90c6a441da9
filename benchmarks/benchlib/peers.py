"""The attack libraries that ours is measured against, called as their users call them.

No environment of the project contains them:
``pip install --no-deps --target work/peers -r benchmarks/requirements.txt``, then run with ``PYTHONPATH=work/peers``.
"""

import importlib
import importlib.metadata
from collections.abc import Callable

import torch
from torch import nn

from moat.base import torchvision_ops

EPS, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
INSTALL = "pip install --no-deps --target work/peers -r benchmarks/requirements.txt, then PYTHONPATH=work/peers"

Attack = Callable[[torch.Tensor, torch.Tensor], object]


def torchattacks(model: nn.Module) -> Attack:
    """PGD of torchattacks: tensors in, tensors out."""
    # It imports torchvision.
    torchvision_ops.declare_missing_operators()
    library = importlib.import_module("torchattacks")
    return library.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=True)


def foolbox(model: nn.Module) -> Attack:
    """LinfPGD of foolbox, which also evaluates its result."""
    library = importlib.import_module("foolbox")
    wrapped = library.PyTorchModel(model, bounds=(0, 1))
    attack = library.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=True)
    return lambda x, y: attack(wrapped, x, y, epsilons=EPS)


def art(model: nn.Module) -> Attack:
    """ProjectedGradientDescent of the Adversarial Robustness Toolbox: numpy in, numpy out."""
    estimators = importlib.import_module("art.estimators.classification")
    attacks = importlib.import_module("art.attacks.evasion")

    def attack(x: torch.Tensor, y: torch.Tensor):
        wrapped = estimators.PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        found = attacks.ProjectedGradientDescent(
            wrapped, eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=1, batch_size=len(x), verbose=False
        )
        return found.generate(x.numpy(), y.numpy())

    return attack


PEERS: dict[str, tuple[str, Callable[[nn.Module], Attack]]] = {
    "torchattacks": ("torchattacks", torchattacks),
    "foolbox": ("foolbox", foolbox),
    "art": ("adversarial-robustness-toolbox", art),
}


def ready(model: nn.Module) -> tuple[dict[str, Attack], dict[str, str], dict[str, str]]:
    """The peers that are installed, on ``model``: name -> attack, name -> version; and name -> why it is missing."""
    found, versions, missing = {}, {}, {}
    for name, (package, make) in PEERS.items():
        try:
            found[name] = make(model)
            versions[name] = importlib.metadata.version(package)
        except ImportError as error:
            missing[name] = f"{package} cannot be imported ({error}): {INSTALL}"
    return found, versions, missing
