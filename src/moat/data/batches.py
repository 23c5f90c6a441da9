"""Shuffled, augmented batches of a data set that is held as uint8 on the training device."""

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import pad

from moat.data.augmentation import Augmentation
from moat.data.extra_images import Mixture
from moat.data.seeding import generator


class Batches:
    """Batches of (x, y): x float32 in [0, 1], logical NCHW in channels-last memory; y int64 class numbers.

    The standard augmentation for CIFAR, sampled per image: zero-pad by ``crop_padding`` pixels, crop a window of the
    original size at a uniform position, flip horizontally with probability 1/2 if ``flip``.

    All random numbers of an epoch are drawn on the CPU, from generators seeded by (seed, epoch, purpose). So an epoch
    is the same on every device, and its batches from ``start`` on do not depend on whether the earlier ones were made.

    Args:
        images: uint8 (N, H, W, C). Copied to ``device`` with padding around every image.
        labels: int64 (N,).
        batch_size: samples per batch; the last batch of an epoch is smaller, or dropped with ``drop_last``.
        seed: the run's seed.
        shuffle: a new order each epoch; otherwise the order of ``images``.
        order: the rows of each epoch; replaces ``shuffle``.
        augment: applied to an epoch's images after crop and flip.

    Raises:
        ValueError: wrong dtype, shape or batch size.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        batch_size: int,
        seed: int,
        device: str | torch.device = "cpu",
        crop_padding: int = 0,
        flip: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        order: Mixture | None = None,
        augment: Augmentation | None = None,
    ):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; allowed: uint8 (N, H, W, C)")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; allowed: int64 ({images.shape[0]},)")
        if batch_size < 1 or crop_padding < 0:
            raise ValueError(f"batch_size={batch_size}, crop_padding={crop_padding}; allowed: at least 1, at least 0")
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.crop_padding, self.flip, self.shuffle, self.drop_last = crop_padding, flip, shuffle, drop_last
        self.rows, self.height, self.width, self.channels = images.shape
        self.order, self.augment = order, augment
        #: Images per epoch.
        self.size = self.rows if order is None else len(order)
        self.labels = labels.to(self.device)
        images = images.to(self.device)
        self._padded = pad(images, (0, 0, *[crop_padding] * 4)) if crop_padding else images.contiguous()
        self._windows = _row_windows(self._padded, self.width)
        # The start of row r of a crop, in pixels from the crop's corner.
        self._row_offsets = torch.arange(self.height, device=self.device) * self._padded.shape[2]

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.size // self.batch_size if self.drop_last else math.ceil(self.size / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches ``start``, ``start + 1``, … of one epoch."""
        order, corners, flips = self._draw(epoch)
        whole = None if self.augment is None else self.augment(self._pixels(corners, flips), self.seed, epoch)
        for batch in range(start, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            pixels = self._pixels(corners[part], flips[part]) if whole is None else whole[part]
            yield pixels.permute(0, 3, 1, 2).float().div_(255), self.labels[order[part]]

    def _draw(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """An epoch's order (N,), the pixel numbers of its crops' corners (N,), and the flipped ones, bool (N,)."""
        count, padding = self.size, self.crop_padding
        order = torch.arange(count) if self.order is None else self.order(self.seed, epoch)
        top = left = torch.full((count,), padding)
        flips = torch.zeros(count, dtype=torch.bool)
        if self.shuffle and self.order is None:
            order = torch.randperm(count, generator=generator(self.seed, epoch, "shuffle"))
        if padding:
            top, left = torch.randint(2 * padding + 1, (2, count), generator=generator(self.seed, epoch, "crop"))
        if self.flip:
            flips = torch.rand(count, generator=generator(self.seed, epoch, "flip")) < 0.5
        corners = (order * self._padded.shape[1] + top) * self._padded.shape[2] + left
        return order.to(self.device), corners.to(self.device), flips

    def _pixels(self, corners: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
        """The crops at ``corners`` of the padded images, flipped where ``flips``: uint8 (B, H, W, C)."""
        rows = (corners[:, None] + self._row_offsets).view(-1)
        pixels = self._windows.index_select(0, rows).view(-1, self.height, self.width, self.channels)
        if flips.any():
            # Appending the flipped images and selecting rows is several times faster than writing them in place, and
            # torch has a fast path for flipping uint8 in NCHW.
            source = torch.arange(len(flips))
            source[flips] = len(flips) + torch.arange(int(flips.sum()))
            which = flips.nonzero()[:, 0].to(self.device)
            flipped = pixels.index_select(0, which).permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)
            pixels = torch.cat([pixels, flipped])
            pixels = pixels.index_select(0, source.to(self.device))
        return pixels


def _row_windows(images: torch.Tensor, width: int) -> torch.Tensor:
    """View (N, H, W, C) as overlapping rows (pixels, width * C): row k holds the ``width`` pixels starting at pixel k.

    Selecting rows of this view copies crops at memory speed, without a loop over samples.
    """
    channels = images.shape[3]
    count = max(images.numel() // channels - width + 1, 0)
    return images.as_strided((count, width * channels), (channels, 1))
