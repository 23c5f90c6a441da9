"""Random generators that are a pure function of what they are for.

Every draw of a run takes its generator from here, so a run that stops and starts again needs no saved
generator state, and adding a draw for one purpose shifts none of the others.
"""

import hashlib

import torch


def derive_seed(seed: int, epoch: int, purpose: str, batch: int = 0) -> int:
    """A seed in [0, 2**63) that depends on all four values, the same on every machine and in every process."""
    key = repr((int(seed), int(epoch), str(purpose), int(batch))).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(
    seed: int, epoch: int, purpose: str, batch: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A fresh generator on ``device`` for the draws of ``purpose`` in one epoch, or in one batch of it.

    Generators on different devices draw different numbers from the same seed.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(seed, epoch, purpose, batch))
