"""Batches against a loop that crops and flips one sample at a time, and epochs resumed anywhere."""

import numpy as np
import pytest
import torch

from moat.data.batches import Batches
from moat.data.seeding import derive_seed, generator

COUNT, SIZE = 23, 6


def images(channels: int = 3, count: int = COUNT, size: int = SIZE) -> torch.Tensor:
    """No two pixels of one image alike, so that a crop's position and direction can be told."""
    values = np.stack([np.random.RandomState(k).permutation(256)[: size * size * channels] for k in range(count)])
    return torch.from_numpy(values.astype(np.uint8).reshape(count, size, size, channels))


def batches(channels: int = 3, **changes) -> Batches:
    settings = {"batch_size": 5, "seed": 7, "crop_padding": 2, "flip": True} | changes
    return Batches(images(channels), torch.arange(COUNT), **settings)


def windows(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of one image that augmentation may give -> (top, left, mirrored), cut with numpy."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + SIZE, left : left + SIZE]
            found[crop.tobytes()] = top, left, False
            found[crop[:, ::-1].tobytes()] = top, left, True
    return found


def as_bytes(x: torch.Tensor) -> list[bytes]:
    return [image.tobytes() for image in (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_every_sample_is_a_crop_of_its_own_image(channels, flip, padding):
    source = images(channels).numpy()
    seen = []
    for epoch in range(3):
        for x, y in batches(channels, flip=flip, crop_padding=padding).epoch(epoch):
            for content, label in zip(as_bytes(x), y.tolist(), strict=True):
                seen.append(windows(source[label], padding)[content])
    mirrored = sum(flipped for *_, flipped in seen)
    assert (20 < mirrored < 49) if flip else mirrored == 0
    positions = {(top, left) for top, left, _ in seen}
    assert len(positions) > 0.8 * (2 * padding + 1) ** 2


def test_exact_against_one_sample_at_a_time():
    """The documented draws, used the slow way, give the same bits."""
    source, size, padding, epoch = images(), COUNT, 2, 4
    order = torch.randperm(size, generator=generator(7, epoch, "shuffle"))
    tops, lefts = torch.randint(2 * padding + 1, (2, size), generator=generator(7, epoch, "crop"))
    mirrored = torch.rand(size, generator=generator(7, epoch, "flip")) < 0.5
    expected = []
    for position, row in enumerate(order.tolist()):
        padded = torch.zeros(SIZE + 2 * padding, SIZE + 2 * padding, 3, dtype=torch.uint8)
        padded[padding:-padding, padding:-padding] = source[row]
        top, left = int(tops[position]), int(lefts[position])
        crop = padded[top : top + SIZE, left : left + SIZE].permute(2, 0, 1)
        expected.append((crop.flip(2) if mirrored[position] else crop).float() / 255)
    x = torch.cat([x for x, _ in batches().epoch(epoch)])
    y = torch.cat([y for _, y in batches().epoch(epoch)])
    assert torch.equal(x, torch.stack(expected))
    assert torch.equal(y, order)


def test_layout_and_range():
    x, y = next(batches().epoch(0))
    assert x.shape == (5, 3, SIZE, SIZE) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize("start", range(6))
def test_starting_later_gives_the_same_batches(start):
    """A run resumed in the middle of an epoch, in a new process, goes on with what it would have had."""
    whole = list(batches().epoch(3))
    rest = list(batches().epoch(3, start=start))
    assert len(rest) == max(len(whole) - start, 0)
    for (x, y), (again_x, again_y) in zip(whole[start:], rest, strict=True):
        assert torch.equal(x, again_x) and torch.equal(y, again_y)


@pytest.mark.parametrize(
    "drop_last, batch_size, lengths",
    [(False, 5, [5, 5, 5, 5, 3]), (True, 5, [5] * 4), (True, 30, []), (False, 30, [23])],
)
def test_epoch_covers_every_sample_once(drop_last, batch_size, lengths):
    data = batches(drop_last=drop_last, batch_size=batch_size)
    labels = [y for _, y in data.epoch(0)]
    assert [len(y) for y in labels] == lengths and len(data) == len(lengths)
    if not drop_last:
        assert sorted(torch.cat(labels).tolist()) == list(range(COUNT))


def test_epochs_and_seeds_differ():
    orders = [
        torch.cat([y for _, y in batches(seed=seed).epoch(epoch)]).tolist() for seed in (1, 2) for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 4


def test_in_order_and_untouched_without_augmentation():
    data = batches(shuffle=False, crop_padding=0, flip=False)
    x = torch.cat([x for x, _ in data.epoch(0)])
    assert torch.equal(x, images().permute(0, 3, 1, 2) / 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_epoch_on_the_gpu():
    for (x, y), (gpu_x, gpu_y) in zip(batches().epoch(2), batches(device="cuda").epoch(2), strict=True):
        assert gpu_x.is_cuda and torch.equal(x, gpu_x.cpu()) and torch.equal(y, gpu_y.cpu())


def test_source_is_not_changed():
    source = images()
    before = source.clone()
    for padding in (0, 2):
        for _ in Batches(source, torch.arange(COUNT), batch_size=4, seed=0, crop_padding=padding, flip=True).epoch(0):
            pass
    assert torch.equal(source, before)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"images": images().float()}, "uint8"),
        ({"images": images()[0]}, "uint8"),
        ({"labels": torch.arange(3)}, "int64"),
        ({"labels": torch.arange(COUNT).float()}, "int64"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"crop_padding": -1}, "crop_padding=-1"),
    ],
)
def test_wrong_arguments(changes, words):
    arguments = {"images": images(), "labels": torch.arange(COUNT), "batch_size": 4, "seed": 0} | changes
    with pytest.raises(ValueError, match=words):
        Batches(**arguments)


# -- seeding ------------------------------------------------------------------
def test_seeds_are_frozen():
    """A resumed run must draw what the interrupted one drew, whatever the machine or the version."""
    assert [derive_seed(0, 0, "shuffle"), derive_seed(1, 2, "attack", 3)] == FROZEN


FROZEN = [6889232816982008347, 4239849448774789622]


def test_every_part_of_the_key_counts():
    keys = [
        (0, 0, "a", 0),
        (1, 0, "a", 0),
        (0, 1, "a", 0),
        (0, 0, "b", 0),
        (0, 0, "a", 1),
        (10, 0, "a", 0),
        (0, 10, "a"),
    ]
    draws = [torch.rand(4, generator=generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    assert torch.equal(draws[0], torch.rand(4, generator=generator(0, 0, "a")))
