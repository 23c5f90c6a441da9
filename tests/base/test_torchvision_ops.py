"""torchvision imports and works beside whatever torch is installed."""

import subprocess
import sys

import pytest

WITH = """
import moat.base.torchvision_ops as ops, torch
torchvision = ops.library("torchvision", user="the test")
from torchvision import models, transforms
with torch.no_grad():
    assert models.resnet18().eval()(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
from PIL import Image
assert transforms.ToTensor()(Image.new("RGB", (4, 4))).shape == (3, 4, 4)
assert all(ops.is_declared(name) for name in ops.NAMES)
boxes, scores = torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.0])
try:
    kept = torchvision.ops.nms(boxes, scores, 0.5).tolist()
    assert torchvision.extension._has_ops() and kept == [0], kept
except RuntimeError as error:
    assert not torchvision.extension._has_ops() and "incompatible" in str(error), error
print("done")
"""

WITHOUT = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else real(name, *rest)
import moat.base.torchvision_ops as ops
ops.declare_missing_operators()
assert not any(ops.is_declared(name) for name in ops.NAMES)
print("done")
"""


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return result.stdout.strip() or result.stderr


@pytest.mark.long
def test_networks_and_transforms_work_and_a_missing_operator_says_so():
    assert run(WITH) == "done"


@pytest.mark.long
def test_nothing_happens_without_torchvision():
    assert run(WITHOUT) == "done"
