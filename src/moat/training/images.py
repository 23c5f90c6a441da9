"""The images of a training: those of the data set, those that a recipe adds, those that choose the best epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moat.data import extra_images
from moat.data.augmentation import AUGMENTATIONS
from moat.data.batches import Batches
from moat.data.datasets import Dataset, Split
from moat.data.splits import subset


def load_extra(recipe: Mapping[str, Any], data: Dataset, root: Path) -> Split | None:
    """Load the recipe's extra images, if it has any. A relative path starts at the project's root.

    Raises:
        DataError: see :func:`moat.data.extra_images.load`.
    """
    wanted = recipe.get("extra_images")
    if wanted is None:
        return None
    return extra_images.load(
        root / wanted["file"],
        sha256=wanted["sha256"],
        image_size=data.image_size,
        channels=len(data.mean),
        num_classes=len(data.classes),
    )


def validation_images(held_out: Split, recipe: Mapping[str, Any]) -> Split:
    """The held-out images that the best epoch is chosen by: all, or the recipe's number with classes in proportion."""
    labels = held_out.labels.numpy()
    rows = torch.from_numpy(subset(labels, np.arange(len(labels)), recipe["validation"].get("images")))
    return Split(held_out.images[rows], held_out.labels[rows])


def training_batches(
    train: Split, extra: Split | None, recipe: Mapping[str, Any], *, seed: int, augment: Mapping[str, Any], device
) -> Batches:
    """Shuffled, augmented batches of the training images and the extra ones.

    Args:
        recipe: batch_size; optionally augment and extra_images.fraction.
        augment: the data set's ``crop_padding`` and ``flip``.
    """
    images, labels, order = train.images, train.labels, None
    if extra is not None:
        order = extra_images.Mixture(len(labels), len(extra.labels), recipe["extra_images"]["fraction"])
        images, labels = torch.cat([images, extra.images]), torch.cat([labels, extra.labels])
    return Batches(
        images,
        labels,
        batch_size=recipe["batch_size"],
        seed=seed,
        device=device,
        crop_padding=augment["crop_padding"],
        flip=augment["flip"],
        order=order,
        augment=AUGMENTATIONS[recipe.get("augment", "dataset")],
        # A single sample has no variance for batch norm.
        drop_last=len(train.labels) % recipe["batch_size"] == 1,
    )
