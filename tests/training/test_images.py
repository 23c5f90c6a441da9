"""Which of the held-out images choose the best epoch."""

import json

import pandas as pd
import pytest
import torch
import yaml

from moat.commands.cli import main
from moat.data.datasets import Split
from moat.training.images import validation_images

# Sorted by class, as folders of images are.
HELD_OUT = Split(torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1), torch.arange(3).repeat_interleave(20))


@pytest.mark.parametrize("images", [None, 60, 1000])
def test_all_of_them_unless_the_recipe_says_less(images):
    found = validation_images(HELD_OUT, {"validation": {} if images is None else {"images": images}})
    assert torch.equal(found.images, HELD_OUT.images) and torch.equal(found.labels, HELD_OUT.labels)


@pytest.mark.parametrize("images", [3, 12, 30])
def test_fewer_have_the_classes_in_proportion(images):
    found = validation_images(HELD_OUT, {"validation": {"images": images}})
    assert found.labels.bincount().tolist() == [images // 3] * 3
    assert torch.equal(HELD_OUT.labels[found.images.flatten().long()], found.labels)


@pytest.mark.long
def test_a_scale_limits_them_and_the_record_says_so(tiny, tmp_path):
    scale = tiny.root / "config/scales/tiny.yaml"
    content = yaml.safe_load(scale.read_text())
    content["recipe"] |= {"epochs": 3, "validation": {"images": 10, "every": 2, "setting": "clean"}}
    scale.write_text(yaml.safe_dump(content))
    assert main(tiny.arguments(tmp_path / "run")) == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["data"]["validation_images"] == 10 and record["best_epoch"] in (2, 3)
    # Fractions of ten images; not after the first epoch.
    accuracies = pd.read_csv(tmp_path / "run/history.csv")["validation_accuracy"]
    assert accuracies.isna().tolist() == [True, False, False]
    assert (10 * accuracies[1:]).tolist() == pytest.approx((10 * accuracies[1:]).round().tolist())
