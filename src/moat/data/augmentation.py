"""Augmentation beyond the data set's crop and flip."""

import functools
from collections.abc import Callable, Mapping

import torch

from moat.base import torchvision_ops
from moat.data.seeding import generator

#: (images of a whole epoch, uint8 (N, H, W, C); seed; epoch) -> augmented images of the same shape and type.
Augmentation = Callable[[torch.Tensor, int, int], torch.Tensor]


def auto_augment(images: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """AutoAugment's CIFAR-10 policy, sampled per image (Cubuk et al., CVPR 2019; torchvision's implementation).

    A random one of 25 pairs of operations, each operation applied with its own probability; areas moved into the image
    are black. All images with the same sample are transformed in one batch, and an epoch at once, so that the batches,
    and with them the rounding, do not depend on where a run was resumed. A GPU rounds some pixels differently.
    """
    policy = _policy()
    outcomes, group = _draw(policy.policies, len(images), seed, epoch).unique(dim=0, return_inverse=True)
    result = images.clone()
    for number, (pair, first, second, *signs) in enumerate(outcomes.tolist()):
        if first or second:
            rows = (group == number).nonzero()[:, 0].to(images.device)
            # torchvision applies an operation if its draw is at most the probability: always for 0, never for 2.
            policy.drawn = pair, (0.0 if first else 2.0, 0.0 if second else 2.0), signs
            result[rows] = policy(images[rows].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return result


#: A recipe's ``augment`` -> what is applied after the data set's crop and flip.
AUGMENTATIONS: Mapping[str, Augmentation | None] = {"dataset": None, "autoaugment": auto_augment}


def _draw(pairs, count: int, seed: int, epoch: int) -> torch.Tensor:
    """Per image (N, 5): the pair, whether its first and second operation apply, and their signs (0 is negative)."""
    random = generator(seed, epoch, "autoaugment")
    which = torch.randint(len(pairs), (count,), generator=random)
    probabilities = torch.tensor([[probability for _, probability, _ in pair] for pair in pairs])
    applied = torch.rand(count, 2, generator=random) <= probabilities[which]
    signs = torch.randint(2, (count, 2), generator=random)
    return torch.cat([which[:, None], applied.long(), signs], 1)


@functools.cache
def _policy():
    """torchvision's transform, its random parameters replaced by ``drawn``: (pair, probabilities, signs)."""
    transforms = torchvision_ops.library("torchvision.transforms", user="augment: autoaugment")

    class Drawn(transforms.AutoAugment):
        drawn = None

        def get_params(self, transform_num):
            return self.drawn

    return Drawn(transforms.AutoAugmentPolicy.CIFAR10)
