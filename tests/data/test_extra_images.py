"""Files of extra training images: what is refused, and how they are mixed in."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from moat.base.errors import DataError
from moat.base.files import hash_file
from moat.data import npy
from moat.data.batches import Batches
from moat.data.extra_images import Mixture, load

KIND = {"image_size": 8, "channels": 3, "num_classes": 4}


def arrays(**changes):
    random = np.random.RandomState(0)
    good = {"image": random.randint(0, 256, (6, 8, 8, 3)).astype(np.uint8), "label": np.array([0, 1, 2, 3, 3, 0])}
    return {key: value for key, value in (good | changes).items() if value is not None}


def written(path, content):
    if path.suffix == ".npz":
        np.savez_compressed(path, **content)
    else:
        save_file(content, path)
    return path


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_both_formats_are_read(tmp_path, ending, dtype):
    content = arrays(label=arrays()["label"].astype(dtype))
    path = written(tmp_path / f"extra{ending}", content)
    split = load(path, sha256=hash_file(path), **KIND)
    assert split.images.dtype == torch.uint8 and np.array_equal(split.images.numpy(), content["image"])
    assert split.labels.dtype == torch.int64 and split.labels.tolist() == [0, 1, 2, 3, 3, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (arrays(image=None), "no array 'image'; it has: label"),
        (arrays(label=None), "no array 'label'; it has: image"),
        (arrays(image=arrays()["image"] / 255), r"'image' is float64 \(6, 8, 8, 3\); allowed: uint8"),
        (arrays(image=arrays()["image"][:, :4]), r"\(6, 4, 8, 3\); allowed: uint8 \(1 or more, 8, 8, 3\)"),
        (arrays(image=arrays()["image"].transpose(0, 3, 1, 2)), r"\(6, 3, 8, 8\)"),
        (arrays(image=arrays()["image"][..., :1]), r"\(6, 8, 8, 1\)"),
        (arrays(image=arrays()["image"][:0], label=np.zeros(0, int)), "1 or more"),
        (arrays(label=np.arange(5)), r"'label' is int64 \(5,\); allowed: whole numbers \(6,\)"),
        (arrays(label=np.full(6, np.nan)), "'label' is float64"),
        (arrays(label=np.eye(6, 4, dtype=int)), r"\(6, 4\)"),
        (arrays(label=np.array([0, 1, 2, 3, 4, 0])), "labels from 0 to 4; allowed: 0 to 3"),
        (arrays(label=np.array([0, -1, 2, 3, 3, 0])), "labels from -1 to 3"),
    ],
)
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_file_of_another_kind_is_refused(tmp_path, ending, content, said):
    path = written(tmp_path / f"extra{ending}", {key: np.ascontiguousarray(value) for key, value in content.items()})
    with pytest.raises(DataError, match=said) as error:
        load(path, sha256=hash_file(path), **KIND)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("extra.npz", lambda content: content[: len(content) // 2], "not a whole .npz"),
        ("extra.npz", lambda content: b"", "not a whole .npz"),
        ("extra.safetensors", lambda content: content[:40], "not a whole safetensors"),
        ("extra.npy", lambda content: content, r"unknown ending of .*extra.npy: '.npy'.*allowed: .npz, .safetensors"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, spoil, said):
    good = written(tmp_path / (name if name != "extra.npy" else "good.npz"), arrays())
    path = tmp_path / name
    path.write_bytes(spoil(good.read_bytes()))
    with pytest.raises(DataError, match=said):
        load(path, sha256=hash_file(path), **KIND)


def _header(shape, descr="|u1"):
    said = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said


HOSTILE = {
    "2^40 images": ({"image.npy": _header("(1099511627776, 8, 8, 3)") + bytes(9)}, "211106232532992"),
    "2^64 bytes": ({"image.npy": _header("(4294967296, 4294967296)") + bytes(9)}, "18446744073709551616"),
    "huge items": ({"label.npy": _header("(3,)", "|V999999999") + bytes(9)}, "2999999997"),
    "80 MiB of zeros": ({"image.npy": bytes(80 << 20)}, "has 83886080 bytes; allowed"),
    "a header of brackets": ({"image.npy": _header("(" * 5000)}, "plain arrays"),
    "a header of 4 GB": ({"image.npy": b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b"{'descr'"}, "plain arrays"),
    "objects": ({"image.npy": _header("(1,)", "|O") + bytes(8)}, "Python objects"),
    "no array": ({"image": b"text"}, "plain arrays"),
    "one array": (_header("(1099511627776, 8, 8, 3)") + bytes(99), "no zip file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_headers_that_ask_for_memory_are_refused_before_numpy_reads_them(tmp_path, case):
    content, said = HOSTILE[case]
    path = tmp_path / "extra.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, member in content.items():
                archive.writestr(name, member)
    with pytest.raises(DataError, match=said) as error:
        npy.check_archive(path, ("image", "label"))
    message = str(error.value)
    assert message.startswith(f"{path}: not a whole .npz file of plain arrays") and "\n" not in message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_headers_that_fit_pass_whatever_else_is_in_the_archive(tmp_path, save):
    save(tmp_path / "extra.npz", **arrays(), notes=np.array([{"a": 1}], dtype=object))
    npy.check_archive(tmp_path / "extra.npz", ("image", "label"))


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "extra.npz"
    np.savez(path, image=np.array([{"a": 1}], dtype=object), label=np.zeros(1, int))
    with pytest.raises(DataError, match="plain arrays"):
        load(path, sha256=hash_file(path), **KIND)


def test_a_file_that_is_missing_or_another_is_named(tmp_path):
    path = tmp_path / "extra.npz"
    with pytest.raises(DataError, match="no such file"):
        load(path, sha256="0" * 64, **KIND)
    there = hash_file(written(path, arrays()))
    with pytest.raises(DataError, match=f"has the sha256 {there}; extra_images.sha256 of the recipe says 000"):
        load(path, sha256="0" * 64, **KIND)


# -- mixing ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("own", "extra", "share", "wanted"),
    [(20, 50, 0.5, 10), (20, 10, 0.5, 10), (20, 3, 0.5, 10), (20, 50, 0.01, 0), (21, 8, 0.7, 15), (20, 1, 0.95, 19)],
)
def test_an_epoch_has_its_share_of_extra_images(own, extra, share, wanted):
    order = Mixture(own, extra, share)
    rows = order(0, 1)
    assert len(rows) == len(order) == own
    from_extra, from_own = rows[rows >= own] - own, rows[rows < own]
    assert len(from_extra) == wanted and len(from_own.unique()) == own - wanted
    counts = torch.bincount(from_extra, minlength=extra)
    # Without replacement, as evenly as there are enough.
    assert len(counts) == extra and counts.max() - counts.min() <= 1
    assert torch.equal(rows, order(0, 1))
    assert not torch.equal(rows, order(0, 2)) and not torch.equal(rows, order(1, 1))


def test_extra_images_are_spread_over_the_batches():
    rows = Mixture(1000, 5000, 0.5)(0, 0)
    per_batch = (rows >= 1000).view(10, 100).sum(1)
    # Expected 50, with a standard deviation below 5.
    assert per_batch.min() > 25 and per_batch.max() < 75


@pytest.mark.parametrize("start", [0, 2, 4])
def test_batches_follow_the_mixture(start):
    images = torch.arange(26, dtype=torch.uint8)[:, None, None, None].expand(26, 4, 4, 3).contiguous()
    order = Mixture(18, 8, 0.4)
    data = Batches(images, torch.arange(26), batch_size=4, seed=7, order=order)
    assert (data.size, data.rows, len(data)) == (18, 26, 5)
    batches = list(data.epoch(2, start=start))
    labels = torch.cat([y for _, y in batches])
    assert torch.equal(labels, order(7, 2)[4 * start :])
    assert torch.equal(torch.cat([x for x, _ in batches])[:, 0, 0, 0].mul(255).round().long(), labels)
