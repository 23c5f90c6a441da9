"""Shuffled, augmented batches from images that lie whole, as uint8, on the training device."""

import math
from collections.abc import Iterator

import torch

from moat.data.augmentation import Augmentation
from moat.data.extra_images import Mixture
from moat.data.seeding import generator


class Batches:
    """Batches of (x, y): x float32 in [0, 1], logical NCHW in channels-last memory; y int64 class numbers.

    Augmentation is that of the CIFAR literature, drawn per sample: zero-pad by ``crop_padding`` pixels, crop a
    window of the original size at a uniform position, mirror left-right with probability 1/2 if ``flip``.

    Everything random of an epoch is drawn on the CPU from generators seeded by (seed, epoch, purpose). So an epoch
    is the same on every device, and the same from batch ``start`` on whether or not the earlier ones were made.

    Args:
        images: uint8 (N, H, W, C). Copied to ``device``, with the padding around every image.
        labels: int64 (N,).
        batch_size: samples per batch; the last one of an epoch is smaller, or missing with ``drop_last``.
        seed: of the run.
        shuffle: a new order each epoch; otherwise the order of ``images``.
        order: which rows make up an epoch, in its place.
        augment: done to an epoch's images after crop and flip.

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
        _check(images, labels, batch_size, crop_padding)
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.crop_padding, self.flip, self.shuffle, self.drop_last = crop_padding, flip, shuffle, drop_last
        self.rows, self.height, self.width, self.channels = images.shape
        self.order, self.augment = order, augment
        #: Images per epoch.
        self.size = self.rows if order is None else len(order)
        self.labels = labels.to(self.device)
        self._padded = _pad(images.to(self.device), crop_padding)
        self._windows = _row_windows(self._padded, self.width)
        # Where row r of a crop starts, counted in pixels from the crop's corner.
        self._row_offsets = torch.arange(self.height, device=self.device) * self._padded.shape[2]

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.size // self.batch_size if self.drop_last else math.ceil(self.size / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches ``start``, ``start + 1``, … of one epoch."""
        order, corners, mirrored = self._draw(epoch)
        whole = None if self.augment is None else self.augment(self._pixels(corners, mirrored), self.seed, epoch)
        for batch in range(start, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            pixels = self._pixels(corners[part], mirrored[part]) if whole is None else whole[part]
            yield pixels.permute(0, 3, 1, 2).float().div_(255), self.labels[order[part]]

    def _draw(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """An epoch's order (N,), its crops' corners (N,) as pixel numbers, and which are mirrored (N,), on the CPU."""
        count, padding = self.size, self.crop_padding
        order = torch.arange(count) if self.order is None else self.order(self.seed, epoch)
        top = left = torch.full((count,), padding)
        mirrored = torch.zeros(count, dtype=torch.bool)
        if self.shuffle and self.order is None:
            order = torch.randperm(count, generator=generator(self.seed, epoch, "shuffle"))
        if padding:
            top, left = torch.randint(2 * padding + 1, (2, count), generator=generator(self.seed, epoch, "crop"))
        if self.flip:
            mirrored = torch.rand(count, generator=generator(self.seed, epoch, "flip")) < 0.5
        corners = (order * self._padded.shape[1] + top) * self._padded.shape[2] + left
        return order.to(self.device), corners.to(self.device), mirrored

    def _pixels(self, corners: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """The windows at ``corners``, cut out of the padded images, some mirrored: uint8 (B, H, W, C)."""
        rows = (corners[:, None] + self._row_offsets).view(-1)
        pixels = self._windows.index_select(0, rows).view(-1, self.height, self.width, self.channels)
        if mirrored.any():
            # Appending the mirror images and picking rows is several times faster than writing them in place.
            source = torch.arange(len(mirrored))
            source[mirrored] = len(mirrored) + torch.arange(int(mirrored.sum()))
            which = mirrored.nonzero()[:, 0].to(self.device)
            pixels = torch.cat([pixels, _mirror(pixels.index_select(0, which))])
            pixels = pixels.index_select(0, source.to(self.device))
        return pixels


def _check(images: torch.Tensor, labels: torch.Tensor, batch_size: int, crop_padding: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; allowed: uint8 (N, H, W, C)")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; allowed: int64 ({images.shape[0]},)")
    if batch_size < 1 or crop_padding < 0:
        raise ValueError(f"batch_size={batch_size}, crop_padding={crop_padding}; allowed: at least 1, at least 0")


def _pad(images: torch.Tensor, padding: int) -> torch.Tensor:
    """Zeros of ``padding`` pixels around each image (N, H, W, C)."""
    if padding == 0:
        return images.contiguous()
    return torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))


def _mirror(images: torch.Tensor) -> torch.Tensor:
    """Left-right mirror images of (N, H, W, C), by way of NCHW: torch has a fast path for that in uint8."""
    return images.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)


def _row_windows(images: torch.Tensor, width: int) -> torch.Tensor:
    """View (N, H, W, C) as overlapping rows (pixels, width * C): row k holds the ``width`` pixels from pixel k on.

    Selecting whole rows of this view copies a crop at the speed of memory, with no loop over samples.
    """
    channels = images.shape[3]
    count = max(images.numel() // channels - width + 1, 0)
    return images.as_strided((count, width * channels), (channels, 1))
