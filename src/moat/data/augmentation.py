"""Augmentation beyond the data set's own crop and flip."""

import functools
import importlib
from collections.abc import Callable, Mapping

import torch

from moat.data.seeding import generator

#: (uint8 images (N, H, W, C) of a whole epoch, seed, epoch) -> images of that shape and type.
Augmentation = Callable[[torch.Tensor, int, int], torch.Tensor]


def auto_augment(images: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """AutoAugment's policy for CIFAR-10, drawn anew for every image (Cubuk et al., CVPR 2019; torchvision's code).

    Two operations of one of 25 pairs, each with the pair's probability. What an operation moves in is black.
    Images of the same draw go through it together, which is why an epoch is augmented as a whole: the same groups,
    and so the same bits, wherever a run is resumed. A GPU rounds some pixels otherwise than the CPU.
    """
    policy = _policy()
    outcomes, group = _draw(policy.policies, len(images), seed, epoch).unique(dim=0, return_inverse=True)
    result = images.clone()
    for number, (pair, first, second, *signs) in enumerate(outcomes.tolist()):
        if first or second:
            rows = (group == number).nonzero()[:, 0].to(images.device)
            # A probability of 0 is below every pair's, one of 2 above: applied, not applied.
            policy.drawn = pair, (0.0 if first else 2.0, 0.0 if second else 2.0), signs
            result[rows] = policy(images[rows].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return result


#: A recipe's ``augment`` -> what is done beside the data set's crop and flip.
AUGMENTATIONS: Mapping[str, Augmentation | None] = {"dataset": None, "autoaugment": auto_augment}


def _draw(pairs, count: int, seed: int, epoch: int) -> torch.Tensor:
    """For each image (N, 5): the pair, whether its first and second operation apply, their signs (0 is minus)."""
    random = generator(seed, epoch, "autoaugment")
    which = torch.randint(len(pairs), (count,), generator=random)
    probabilities = torch.tensor([[probability for _, probability, _ in pair] for pair in pairs])
    applied = torch.rand(count, 2, generator=random) <= probabilities[which]
    signs = torch.randint(2, (count, 2), generator=random)
    return torch.cat([which[:, None], applied.long(), signs], 1)


@functools.cache
def _policy():
    """torchvision's transform, which takes its draws from ``drawn``: (pair, probabilities, signs)."""
    importlib.import_module("moat.base.torchvision_ops")  # Before torchvision, which may not import without it.
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    class Drawn(AutoAugment):
        drawn = None

        def get_params(self, transform_num):
            return self.drawn

    return Drawn(AutoAugmentPolicy.CIFAR10)
