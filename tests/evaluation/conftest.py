"""Small nets on real digits: one trained as usual, one trained against PGD; and a project with a run in it."""

import copy
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from digits_nets import train
from moat.attacks import pgd
from moat.commands.cli import main
from moat.models import nets
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
SCALE = {
    "title": "tiny",
    "description": "one short epoch",
    "comparable": False,
    "data": {"image_size": 16, "train_limit": 128, "test_limit": 40, "validation": 20},
    "model": {"width": 0.0625},
    "recipe": {"epochs": 1, "batch_size": 64},
    "max_seeds": 1,
    "evaluation": {"batch_size": 16, "limit": 30},
    "attacks": {
        "aa": {"limit": 12, "n_iter": 40, "n_targets": 1, "n_queries": 3, "batch_size": 16},
    },
    "resources": {rule: {"mem_mb": 1000, "runtime": 5} for rule in ("train", "evaluate", "verify")},
}
# Suites that are short, or slow enough to be interrupted.
SUITES = {
    "clean_only": {"title": "Clean", "settings": ["clean"]},
    "small_aa": {"title": "AutoAttack", "settings": ["clean", "aa"]},
    "small_trust": {
        "title": "A little of everything",
        "settings": ["clean", "pgd10", "pgd10_det", "aa", "transfer_seed", "transfer_arch"],
        "worst_case": [{"name": "worst", "of": ["clean", "pgd10", "pgd10_det", "aa", "transfer_seed", "fgsm"]}],
    },
}
FOREIGN = """
import torch
from moat import models

def make():
    return models.build("lenet5", 10, image_size=16)

def wrong():
    return "a string"
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def undefended(digits_net):
    return copy.deepcopy(digits_net)


@pytest.fixture(scope="session")
def defended(digits):
    return train(digits, lambda model, x, y: pgd(model, x, y, eps=12 / 255, step_size=6 / 255, steps=3), epochs=6)


@pytest.fixture(scope="session")
def test_images(digits):
    """120 test images, which no net was trained on, and their labels."""
    return digits[0][-120:].contiguous(), digits[1][-120:]


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A project with a tiny scale, digits prepared and one run trained in it; tests may add files only."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    (root / "config" / "scales" / "tiny.yaml").write_text(yaml.safe_dump(SCALE))
    suites = yaml.safe_load((root / "config" / "suites.yaml").read_text())
    (root / "config" / "suites.yaml").write_text(yaml.safe_dump(suites | SUITES))
    (root / "elsewhere.py").write_text(FOREIGN)
    torch.manual_seed(0)
    save_file(nets.build("lenet5", 10, image_size=16).state_dict(), root / "lenet.safetensors")
    here = Path.cwd()
    os.chdir(root)
    try:
        assert main(["fetch", "digits", "--into", "digits"]) == 0
        assert main(["prepare", "digits", "--from", "digits", "--out", "digits.safetensors", "--scale", "tiny"]) == 0
        train = "train --dataset digits --arch resnet18 --method standard --seed 0 --scale tiny --out run"
        assert main([*train.split(), "--data", "digits.safetensors"]) == 0
    finally:
        os.chdir(here)
    return root
