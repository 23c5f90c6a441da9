"""A digest of images and labels that is the same in whatever order they come.

Two copies of a data set may hold the same images in different files and another order. Their checksums differ, and the
digests tell whether anything else does.
"""

import hashlib
from collections.abc import Iterable

import torch

from moat.data.datasets import Split


def unordered_digest(splits: Iterable[Split]) -> str:
    """sha256 of the sorted sha256 hashes of all images, each with its label, as 64 hex digits.

    Args:
        splits: their images, uint8 (N, H, W, C), and labels (N,) count together: which images are held out does not
            matter.
    """
    hashes = [
        hashlib.sha256(pixels.tobytes() + int(label).to_bytes(8, "little")).digest()
        for split in splits
        for pixels, label in zip(split.images.contiguous().numpy(), split.labels.to(torch.int64).tolist(), strict=True)
    ]
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()
