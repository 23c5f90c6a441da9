"""Batches (crop, flip, to float) of CIFAR-size images against torchvision's CIFAR10, PIL transforms and a DataLoader.

    python benchmarks/data.py [--images 5000]

An epoch of each in turn; the loader has no workers, because CPU time is what is compared.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from benchlib import command, records, timing, updates
from moat.base import torchvision_ops
from moat.data.batches import Batches

COLUMNS = records.COLUMNS
BATCH_SIZE = 128


def add_arguments(parser) -> None:
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="images in an epoch (default: 5000)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")


def measure(arguments) -> list[dict[str, Any]]:
    """Row 12 of the table."""
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (arguments.images, 32, 32, 3)).astype(np.uint8)
    labels = random.randint(0, 10, arguments.images).tolist()
    calls = {"moat": _ours(images, labels), "torchvision": _peer(images, labels)}
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    facts = {"ms_per_image": updates.milliseconds(taken, arguments.images), "batch_size": BATCH_SIZE}
    return [records.row(arguments.project, 12, "", timing.ratio(taken["torchvision"], taken["moat"]), **facts)]


def _peer(images: np.ndarray, labels: list[int]) -> Callable[[], None]:
    """An epoch of torchvision's CIFAR10 over these images, as training scripts of the field write it."""
    datasets = torchvision_ops.library("torchvision.datasets", user="this benchmark's peer")
    transforms = torchvision_ops.library("torchvision.transforms", user="this benchmark's peer")

    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    # Without its files: only what __getitem__ uses is set.
    dataset = object.__new__(datasets.CIFAR10)
    dataset.data, dataset.targets = images, labels
    dataset.transform, dataset.target_transform = transforms.Compose(steps), None
    return lambda: _consume(torch.utils.data.DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=0))


def _ours(images: np.ndarray, labels: list[int]) -> Callable[[], None]:
    data, numbers = torch.from_numpy(images), torch.tensor(labels)
    batches = Batches(data, numbers, batch_size=BATCH_SIZE, seed=0, crop_padding=4, flip=True)
    epochs = iter(range(1_000_000))
    return lambda: _consume(batches.epoch(next(epochs)))


def _consume(epoch: Iterable) -> None:
    for _ in epoch:
        pass


if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))
