"""Random generators derived from (seed, epoch, purpose, batch).

All random numbers of a run come from these generators, so that resuming needs no saved generator state, and drawing
numbers for a new purpose leaves all others unchanged.
"""

import hashlib

import torch


def derive_seed(seed: int, epoch: int, purpose: str, batch: int = 0) -> int:
    """A seed in [0, 2**63) derived from all four values, the same on every machine and in every process."""
    key = repr((int(seed), int(epoch), str(purpose), int(batch))).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(
    seed: int, epoch: int, purpose: str, batch: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A new generator on ``device`` for one ``purpose`` in one epoch, or in one batch of it.

    CPU and GPU generators with the same seed draw different numbers.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(seed, epoch, purpose, batch))
