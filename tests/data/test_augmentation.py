"""AutoAugment in groups against torchvision's own, one image at a time."""

import subprocess
import sys

import pytest
import torch

from moat.base import torchvision_ops
from moat.data.augmentation import AUGMENTATIONS, auto_augment
from moat.data.batches import Batches
from moat.data.seeding import generator

COUNT, SIZE = 120, 10


def images(channels=3, count=COUNT):
    shape = (count, SIZE, SIZE, channels)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def one_by_one(pixels, seed, epoch):
    """The documented draws, given to torchvision's transform image by image."""
    transforms = torchvision_ops.library("torchvision.transforms", user="the test")
    transform = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)
    random, count = generator(seed, epoch, "autoaugment"), len(pixels)
    which = torch.randint(25, (count,), generator=random).tolist()
    chances, signs = torch.rand(count, 2, generator=random), torch.randint(2, (count, 2), generator=random)
    results = []
    for number, image in enumerate(pixels):
        transform.get_params = lambda count, n=number: (which[n], chances[n], signs[n])
        results.append(transform(image.permute(2, 0, 1)).permute(1, 2, 0))
    return torch.stack(results)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (5, 3)])
def test_it_is_torchvisions(channels, seed, epoch):
    source = images(channels)
    result = auto_augment(source, seed, epoch)
    assert result.dtype == torch.uint8 and result.shape == source.shape
    assert torch.equal(source, images(channels))
    difference = (result.int() - one_by_one(source, seed, epoch).int()).abs()
    # Convolutions of many images may round a pixel otherwise than of one.
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3
    changed = (result != source).flatten(1).any(1).float().mean()
    assert (0.6 if channels == 3 else 0.4) < changed < 0.98


def batches(augment, **changes):
    settings = {"batch_size": 16, "seed": 2, "crop_padding": 1, "flip": True} | changes
    return Batches(images(), torch.arange(COUNT), augment=AUGMENTATIONS[augment], **settings)


def test_it_comes_after_crop_and_flip_and_keeps_the_labels():
    plain = list(batches("dataset").epoch(1))
    pixels = torch.cat([x for x, _ in plain]).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    expected = auto_augment(pixels, 2, 1).permute(0, 3, 1, 2).float() / 255
    augmented = list(batches("autoaugment").epoch(1))
    assert torch.equal(torch.cat([x for x, _ in augmented]), expected)
    assert torch.equal(torch.cat([y for _, y in augmented]), torch.cat([y for _, y in plain]))
    assert augmented[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("start", [0, 3, 7])
def test_starting_later_gives_the_same_batches(start):
    whole, rest = list(batches("autoaugment").epoch(4)), list(batches("autoaugment").epoch(4, start=start))
    assert len(rest) == len(whole) - start
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[start:], rest, strict=True))


def test_epochs_and_seeds_differ_and_global_random_numbers_do_not_matter():
    results = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        torch.manual_seed(len(results))
        results.append(auto_augment(images(), seed, epoch))
    assert torch.equal(results[0], results[3])
    assert not any(torch.equal(results[0], other) for other in results[1:3])


@pytest.mark.long
def test_torchvision_is_imported_only_when_it_is_asked_for():
    code = "import sys, moat.training.runs; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
