"""The digest of images in any order."""

import pytest
import torch

from moat.data.datasets import Split
from moat.data.unordered import unordered_digest

IMAGES = torch.arange(5 * 2 * 2 * 3, dtype=torch.uint8).reshape(5, 2, 2, 3)
LABELS = torch.tensor([0, 1, 2, 1, 0])
DIGEST = unordered_digest([Split(IMAGES, LABELS)])


def changed(**columns):
    return Split(**{"images": IMAGES, "labels": LABELS, **columns})


@pytest.mark.parametrize(
    ("splits", "same"),
    [
        ([changed(images=IMAGES.flip(0), labels=LABELS.flip(0))], True),
        ([Split(IMAGES[3:], LABELS[3:]), Split(IMAGES[:3], LABELS[:3])], True),
        ([changed(images=IMAGES.transpose(1, 2).contiguous().transpose(1, 2))], True),
        ([changed(labels=LABELS.flip(0).roll(1))], False),
        ([changed(images=IMAGES + 1)], False),
        ([Split(IMAGES[:4], LABELS[:4])], False),
        ([Split(IMAGES[[0, 0, 1, 2, 3]], LABELS[[0, 0, 1, 2, 3]])], False),
    ],
    ids=["reversed", "split", "strides", "other labels", "other pixels", "one missing", "one twice"],
)
def test_only_the_order_does_not_matter(splits, same):
    assert (unordered_digest(splits) == DIGEST) == same
