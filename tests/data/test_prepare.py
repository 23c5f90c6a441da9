"""Preparing: each official layout against the pixels it was made of, splits, limits, determinism."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small_data import (
    cifar_c_members,
    cifar_members,
    encoded,
    folder_members,
    mat_file,
    mnist_files,
    pixels,
    tar,
    tiny_members,
    zipped,
)

from moat.base.errors import DataError
from moat.commands.cli import main
from moat.data import images
from moat.data.datasets import load
from moat.data.splits import hold_out, stratified_order, subset

ROOT = Path(__file__).parents[2]
ARCHIVE = "cifar-10-python.tar.gz"


def prepared(workplace, *options, splits=("train", "val", "test")):
    assert workplace.fetch_and_prepare(*options) == 0
    return load(workplace.out, splits)


def cifar(workplace, per_batch=20):
    workplace.publish({ARCHIVE: tar(cifar_members(per_batch))})
    workplace.dataset()


def same(split, images, labels):
    """Whether a split holds exactly the official rows that its index names."""
    index = split.columns["index"].numpy()
    assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    np.testing.assert_array_equal(split.images.numpy(), images[index])
    np.testing.assert_array_equal(split.labels.numpy(), np.asarray(labels)[index])


# -- formats ------------------------------------------------------------------
def test_cifar_pickle(workplace):
    cifar(workplace)
    data = prepared(workplace, "--validation", "10")
    train = np.concatenate([pixels(20, seed=k) for k in range(5)])
    same(data.splits["train"], train, list(range(10)) * 10)
    same(data.splits["val"], train, list(range(10)) * 10)
    same(data.splits["test"], pixels(20, seed=5), list(range(10)) * 2)
    assert [len(data.splits[name].labels) for name in ("train", "val", "test")] == [90, 10, 20]
    assert data.classes == [f"class {k}" for k in range(10)]
    assert data.metadata["counts"] == {"train": 90, "val": 10, "test": 20}


def test_cifar_pickle_of_python_2(workplace):
    """The official files were written by Python 2: text is bytes, arrays come from numpy.core."""
    content = cifar_members(4)
    rows = pixels(4, seed=0).transpose(0, 3, 1, 2).reshape(4, 3072)
    raw = rows.tobytes()
    # cPickle at protocol 2: {"data": _reconstruct(ndarray, (0,), "b") with its state, "labels": [...]}
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x04M\x00\x0c\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    content["cifar-10-batches-py/data_batch_1"] = (
        b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x00K\x01K\x02K\x03eu."
    )
    workplace.publish({ARCHIVE: tar(content)})
    workplace.dataset()
    data = prepared(workplace, "--validation", "0")
    np.testing.assert_array_equal(data.splits["train"].images[:4].numpy(), pixels(4, seed=0))


def test_svhn(workplace):
    workplace.publish({"train_32x32.mat": mat_file(), "test_32x32.mat": mat_file(10)})
    workplace.dataset("svhn")
    data = prepared(workplace, "--validation", "3")
    same(data.splits["train"], pixels(20), list(range(10)) * 2)
    same(data.splits["test"], pixels(10), list(range(10)))


def test_mnist(workplace):
    workplace.publish(mnist_files())
    workplace.dataset("mnist")
    data = prepared(workplace, "--validation", "5")
    same(data.splits["train"], pixels(20, 28, 1, seed=0), list(range(10)) * 2)
    same(data.splits["test"], pixels(20, 28, 1, seed=1), list(range(10)) * 2)
    assert data.mean == [0.1307]


def test_tiny_imagenet(workplace):
    members = tiny_members()
    workplace.publish({"tiny-imagenet-200.zip": zipped(members)})
    workplace.dataset("tiny-imagenet", num_classes=2)
    data = prepared(workplace, "--validation", "2")
    assert data.classes == ["n01", "n02"]
    names = [f"tiny-imagenet-200/train/{c}/images/{c}_{k}.JPEG" for c in ("n01", "n02") for k in range(4)]
    same(data.splits["train"], decoded(members, names), [0] * 4 + [1] * 4)
    names = [f"tiny-imagenet-200/val/images/val_{k}.JPEG" for k in range(4)]
    same(data.splits["test"], decoded(members, names), [1, 0, 1, 0])


def decoded(members, names):

    return np.stack([np.asarray(Image.open(io.BytesIO(members[name])).convert("RGB")) for name in names])


@pytest.mark.parametrize("kind", ["zip", "w:", "w:gz", "w:xz", "folder"])
@pytest.mark.parametrize("prefix", ["", "a/b/", "./"])
def test_image_folder(workplace, kind, prefix):
    """Any folder of images is a dataset by its YAML alone, packed or not."""
    members = folder_members(prefix)
    description = {"num_classes": 2, "image_size": 8, "classes": None}
    if kind == "folder":
        for name, data in members.items():
            (workplace.root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
            (workplace.root / "pictures" / name).write_bytes(data)
        workplace.dataset("cifar10-jpeg", files=[], folder="pictures", **description)
    else:
        # Whatever the archive's order, rows are sorted by class and name.
        shuffled = {**dict(reversed(members.items())), f"{prefix}train/readme.txt": b"x", f"{prefix}.hidden.png": b"x"}
        workplace.publish({"pictures": zipped(shuffled) if kind == "zip" else tar(shuffled, kind)})
        workplace.dataset("cifar10-jpeg", files=[{"name": "pictures", "sha256": "0" * 64}], **description)
    data = prepared(workplace, "--validation", "3")
    images = pixels(24, 8)
    same(data.splits["train"], images[:12], [0] * 6 + [1] * 6)
    same(data.splits["test"], images[12:], [0] * 6 + [1] * 6)
    assert data.classes == ["a", "b"]


def test_local_folder_changed_after_fetching(workplace, capsys):
    for name, data in folder_members("").items():
        (workplace.root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (workplace.root / "pictures" / name).write_bytes(data)
    workplace.dataset("cifar10-jpeg", files=[], folder="pictures", num_classes=2)
    assert workplace.fetch() == 0
    (workplace.root / "pictures" / "train" / "a" / "000.png").write_bytes(encoded(pixels(1, 8, seed=9)[0]))
    assert workplace.prepare("--validation", "0") == 3
    assert "this folder's content differs" in capsys.readouterr().err


def test_imagenette_layout_and_class_names(workplace):
    """Validation folder as test split, images of several sizes and modes, readable names."""
    members = {}
    for split in ("train", "val"):
        for label in ("n01", "n02"):
            members[f"x/{split}/{label}/0.JPEG"] = encoded(pixels(1, 40)[0][:20], "JPEG")
            members[f"x/{split}/{label}/1.JPEG"] = encoded(pixels(1, 24, 1)[0], "JPEG")
    workplace.publish({"imagenette2-160.tgz": tar(members)})
    workplace.dataset("imagenette", num_classes=2, classes=["tench", "church"], image_size=16)
    data = prepared(workplace, "--validation", "0")
    assert data.classes == ["tench", "church"]
    assert data.splits["train"].images.shape == (4, 16, 16, 3)
    wide = Image.open(io.BytesIO(members["x/train/n01/0.JPEG"]))
    assert wide.size == (40, 20)
    expected = np.asarray(wide.resize((32, 16), Image.Resampling.BILINEAR).crop((8, 0, 24, 16)))
    np.testing.assert_array_equal(data.splits["train"].images[0].numpy(), expected)
    grey = data.splits["train"].images[1]
    assert torch.equal(grey[..., 0], grey[..., 1]) and torch.equal(grey[..., 0], grey[..., 2])


def test_cifar_c(workplace):
    """Rows stay in the official order: corruption (by name), severity, image."""
    workplace.publish({"CIFAR-10-C.tar": tar(cifar_c_members(), "w")})
    workplace.dataset("cifar10-c")
    data = prepared(workplace, splits=("test",))
    test = data.splits["test"]
    assert data.metadata["corruptions"] == ["blur", "fog"]
    np.testing.assert_array_equal(test.images.numpy(), np.concatenate([pixels(50, seed=1), pixels(50, seed=0)]))
    assert test.labels.tolist() == list(range(10)) * 10
    assert test.columns["index"].tolist() == list(range(10)) * 10
    assert test.columns["corruption"].tolist() == [0] * 50 + [1] * 50
    assert test.columns["severity"].tolist() == [s for s in range(1, 6) for _ in range(10)] * 2
    with pytest.raises(DataError, match="no split 'train'; it has: test"):
        load(workplace.out)


def test_cifar_c_limited_to_the_images_of_the_clean_test_split(workplace):
    workplace.publish({"CIFAR-10-C.tar": tar(cifar_c_members(20), "w"), ARCHIVE: tar(cifar_members(20))})
    workplace.dataset("cifar10-c")
    corrupted = prepared(workplace, "--test-limit", "7", splits=("test",)).splits["test"]
    workplace.dataset("cifar10")
    clean = prepared(workplace, "--test-limit", "7", "--validation", "0").splits["test"]
    assert len(corrupted.labels) == 7 * 5 * 2
    for block in range(10):
        rows = slice(7 * block, 7 * block + 7)
        assert corrupted.columns["index"][rows].tolist() == sorted(clean.columns["index"].tolist())
    np.testing.assert_array_equal(
        corrupted.images[:7].numpy(), pixels(100, seed=1)[corrupted.columns["index"][:7].numpy()]
    )


def test_digits(workplace):
    from sklearn.datasets import load_digits

    workplace.dataset("digits")
    data = prepared(workplace)
    bunch = load_digits()
    train, test = data.splits["train"], data.splits["test"]
    assert [len(split.labels) for split in data.splits.values()] == [1293, 144, 360]
    assert train.images.shape[1:] == (8, 8, 3)
    assert int(train.images.max()) == 255
    # The two official splits part the 1,797 images: every one is found in exactly one place.
    every = torch.cat([split.images[..., 0].flatten(1) for split in data.splits.values()])
    ours = sorted(map(bytes, every.numpy()))
    assert ours == sorted(map(bytes, np.round(bunch.data * 255 / 16).astype(np.uint8)))
    counts, whole = torch.bincount(test.labels), np.bincount(bunch.target)
    assert np.abs(counts.numpy() - whole / 1797 * 360).max() < 1


def test_digits_statistics_are_those_of_the_training_split(workplace):
    workplace.dataset("digits")
    data = prepared(workplace, "--validation", "0")
    images = data.splits["train"].images.double() / 255
    assert len(images) == 1437
    for channel in range(3):
        assert images[..., channel].mean().item() == pytest.approx(data.mean[channel], abs=5e-5)
        assert images[..., channel].std(unbiased=False).item() == pytest.approx(data.std[channel], abs=5e-5)


# -- parameters ---------------------------------------------------------------
def test_image_size_scales_images_and_padding(workplace):
    workplace.dataset("digits")
    data = prepared(workplace, "--image-size", "16")
    assert data.image_size == 16 and data.augment == {"crop_padding": 2, "flip": False}
    small = prepared(workplace).splits["train"].images[0].numpy()
    expected = Image.fromarray(small).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.splits["train"].images[0].numpy(), np.asarray(expected))


def test_same_input_same_bytes(workplace):
    cifar(workplace)
    content = []
    for _ in range(2):
        assert workplace.fetch_and_prepare("--validation", "10", "--train-limit", "50") == 0
        content.append(workplace.out.read_bytes())
    # The same files by another way: what is prepared does not depend on where they lay.
    other = workplace.root / "elsewhere"
    assert workplace.moat("fetch", "small", "--into", other, "--mirror", workplace.mirror.as_uri()) == 0
    workplace.into.rename(workplace.root / "old")
    other.rename(workplace.into)
    assert workplace.prepare("--validation", "10", "--train-limit", "50") == 0
    content.append(workplace.out.read_bytes())
    assert content[0] == content[1] == content[2]
    metadata = load(workplace.out).metadata
    assert str(workplace.root) not in json.dumps(metadata)
    assert metadata["sources"][0]["name"] == ARCHIVE and metadata["sources"][0]["official"] is False


def test_splits_do_not_overlap_and_nest(workplace):
    cifar(workplace, 40)
    whole = prepared(workplace, "--validation", "20")
    few = prepared(workplace, "--validation", "20", "--train-limit", "60", "--test-limit", "30")
    fewer = prepared(workplace, "--validation", "20", "--train-limit", "30", "--test-limit", "10")

    def rows(data, split):
        return data.splits[split].columns["index"].tolist()

    assert sorted(rows(whole, "train") + rows(whole, "val")) == list(range(200))
    assert rows(whole, "val") == rows(few, "val") == rows(fewer, "val")
    assert set(rows(fewer, "train")) < set(rows(few, "train")) < set(rows(whole, "train"))
    assert rows(whole, "test")[:10] == rows(few, "test")[:10] == rows(fewer, "test")
    assert torch.bincount(fewer.splits["test"].labels).tolist() == [1] * 10
    assert max(torch.bincount(few.splits["train"].labels)) - min(torch.bincount(few.splits["train"].labels)) <= 2


def test_limit_beyond_the_data_takes_all(workplace):
    cifar(workplace)
    data = prepared(workplace, "--validation", "0", "--train-limit", "1000", "--test-limit", "1000")
    assert data.metadata["counts"] == {"train": 100, "val": 0, "test": 20}
    assert data.splits["val"].images.shape == (0, 32, 32, 3)


def test_scale_gives_what_options_do_not(workplace):

    cifar(workplace)
    template = yaml.safe_load((ROOT / "workflow" / "schemas" / "scale.schema.yaml").read_text())
    (workplace.root / "workflow" / "schemas" / "scale.schema.yaml").write_text(
        yaml.safe_dump({"type": "object", "properties": {"data": template["properties"]["data"]}})
    )
    (workplace.root / "config" / "scales").mkdir()
    scale = {"data": {"image_size": 16, "train_limit": 30, "test_limit": None, "validation": 10}}
    (workplace.root / "config" / "scales" / "tiny.yaml").write_text(yaml.safe_dump(scale))
    data = prepared(workplace, "--scale", "tiny", "--train-limit", "20")
    assert data.metadata["parameters"] == {"image_size": 16, "train_limit": 20, "test_limit": None, "validation": 10}


@pytest.mark.parametrize(
    "options, words",
    [
        (["--validation", "100"], ["validation=100", "100 training images", "0 to 99"]),
        (["--validation", "-1"], ["validation=-1", "at least 0"]),
        (["--image-size", "2"], ["image_size=2", "at least 4"]),
        (["--train-limit", "0"], ["train_limit=0", "at least 1"]),
        (["--test-limit", "0"], ["test_limit=0", "at least 1"]),
    ],
)
def test_impossible_parameters(workplace, capsys, options, words):
    cifar(workplace)
    assert workplace.fetch_and_prepare(*options) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words)
    assert not workplace.out.exists()


# -- splits -------------------------------------------------------------------
@pytest.mark.parametrize("counts", [[50, 50, 50], [5, 40, 100], [1, 99]])
def test_every_prefix_is_stratified(counts):
    labels = np.random.RandomState(1).permutation(np.repeat(np.arange(len(counts)), counts))
    order = stratified_order(labels)
    assert sorted(order) == list(range(len(labels)))
    shares = np.array(counts) / sum(counts)
    for length in range(1, len(labels) + 1):
        found = np.bincount(labels[order[:length]], minlength=len(counts))
        assert np.abs(found - shares * length).max() <= 1.5


def test_splits_are_frozen():
    """These rows are part of every published number: they must not change with numpy or with the code."""
    labels = np.arange(20) % 4
    kept, held_out = hold_out(20, 5)
    assert held_out.tolist() == FROZEN["held_out"]
    assert sorted([*kept, *held_out]) == list(range(20))
    assert stratified_order(labels).tolist() == FROZEN["order"]
    assert subset(labels, kept, 6).tolist() == FROZEN["subset"]


FROZEN = {
    "held_out": [4, 10, 11, 16, 19],
    "order": [4, 11, 10, 9, 2, 13, 19, 16, 8, 18, 7, 5, 14, 0, 15, 1, 3, 6, 12, 17],
    "subset": [5, 6, 8, 9, 15, 18],
}


# -- loading ------------------------------------------------------------------
def test_load_some_splits(workplace):
    cifar(workplace)
    data = prepared(workplace, "--validation", "10", splits=("val",))
    assert list(data.splits) == ["val"]
    assert len(data.sha256) == 64


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _garbage(path):
    path.write_bytes(b"\xff" * 1000)


def _empty(path):
    path.write_bytes(b"")


def _weights(path):
    save_file({"weight": torch.zeros(3)}, path)


def _shorten(name):
    def harm(path):
        with safe_open(path, framework="pt") as stream:
            metadata, tensors = stream.metadata(), {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        save_file(tensors | {name: tensors[name][:-1].clone()}, path, metadata)

    return harm


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda path: path.unlink(), "no such file"),
        (_shorten("test.labels"), r"split 'test' has \d+ images, \d+ index, \d+ labels; run moat prepare again"),
        (_shorten("val.images"), "split 'val' has 9 images, 10 index, 10 labels"),
        (_shorten("train.index"), "split 'train' has"),
        (_truncate, "not a whole safetensors file"),
        (_garbage, "not a whole safetensors file"),
        (_empty, "not a whole safetensors file"),
        (_weights, "not a dataset prepared by this version"),
    ],
)
def test_load_refuses(workplace, harm, reason):
    cifar(workplace)
    prepared(workplace, "--validation", "10")
    harm(workplace.out)
    with pytest.raises(DataError, match=reason) as error:
        load(workplace.out)
    assert str(workplace.out) in str(error.value)


# -- real data ------------------------------------------------------------------
@pytest.mark.brief(keep=lambda case: case["name"] in ("cifar10", "cifar100"))
@pytest.mark.parametrize(
    "name, shape, counts, options",
    [
        ("cifar10", (32, 32, 3), (4970, 200, 1017), ["--validation", "200"]),
        ("cifar100", (32, 32, 3), (386, 100, 916), ["--validation", "100"]),
        ("mnist", (28, 28, 1), (59000, 1000, 10000), []),
        ("tiny-imagenet", (64, 64, 3), (8000, 2000, 4000), []),
        ("cifar10-jpeg", (32, 32, 3), (49000, 1000, 10000), []),
    ],
)
def test_real_files(real_mirror, tmp_path, name, shape, counts, options):

    project, out = ["--project", str(ROOT)], tmp_path / "x.safetensors"
    assert main([*project, "fetch", name, "--into", str(tmp_path / name), "--mirror", str(real_mirror)]) == 0
    assert main([*project, "prepare", name, "--from", str(tmp_path / name), "--out", str(out), *options]) == 0
    data = load(out)
    assert tuple(len(split.labels) for split in data.splits.values()) == counts
    assert all(split.images.shape[1:] == shape for split in data.splits.values())
    # Real images of these sets: their mean is near the published one of the whole set.
    mean = data.splits["test"].images.double().mean((0, 1, 2)) / 255
    assert (mean - torch.tensor(data.mean)).abs().max() < 0.02
    assert torch.bincount(data.splits["test"].labels, minlength=len(data.classes)).min() > 0


@pytest.mark.long
def test_real_cifar_c_is_of_the_real_test_images(real_mirror, tmp_path):
    """The same labels as the clean rows it was made of, and noise that grows with severity."""

    project = ["--project", str(ROOT)]
    for name, options in (("cifar10", ["--validation", "0"]), ("cifar10-c", [])):
        folder, out = str(tmp_path / name), str(tmp_path / f"{name}.safetensors")
        assert main([*project, "fetch", name, "--into", folder, "--mirror", str(real_mirror)]) == 0
        assert main([*project, "prepare", name, "--from", folder, "--out", out, *options]) == 0
    clean = load(tmp_path / "cifar10.safetensors", ("test",)).splits["test"]
    data = load(tmp_path / "cifar10-c.safetensors", ("test",))
    corrupted = data.splits["test"]
    assert len(data.metadata["corruptions"]) == 19 and len(corrupted.labels) == 19 * 500
    images, labels = torch.empty_like(clean.images), torch.empty_like(clean.labels)
    images[clean.columns["index"]], labels[clean.columns["index"]] = clean.images, clean.labels
    assert torch.equal(corrupted.labels, labels[corrupted.columns["index"]])
    noise = data.metadata["corruptions"].index("gaussian_noise")
    distance = (corrupted.images.float() - images[corrupted.columns["index"]].float()).abs().mean((1, 2, 3))
    rows = corrupted.columns["corruption"] == noise
    by_severity = [distance[rows & (corrupted.columns["severity"] == s)].mean().item() for s in range(1, 6)]
    assert by_severity == sorted(by_severity) and by_severity[0] > 1


# -- folders of images as they are found ------------------------------------------------
def in_folder(workplace, **changes):
    for name, content in folder_members().items():
        (workplace.root / name).parent.mkdir(parents=True, exist_ok=True)
        (workplace.root / name).write_bytes(content)
    workplace.dataset("cifar10-jpeg", files=[], folder="pictures", num_classes=2, image_size=8, **changes)
    return workplace.root / "pictures"


def test_links_inside_a_folder_of_images_are_followed(workplace):
    pictures = in_folder(workplace)
    (pictures / "all").mkdir()
    (pictures / "test/b").rename(pictures / "all/b")
    (pictures / "test/b").symlink_to("../all/b")
    (pictures / "train").rename(pictures / "all/training")
    (pictures / "train").symlink_to(pictures / "all/training")
    (pictures / "test/a/000.png").rename(pictures / "all/first.png")
    (pictures / "test/a/000.png").symlink_to("../../all/first.png")
    data = prepared(workplace, "--validation", "2")
    assert torch.bincount(data.splits["test"].labels).tolist() == [6, 6]
    assert len(data.splits["train"].labels) == 10
    assert json.loads((workplace.into / "manifest.json").read_text())["folder"]["files"] > 24


def test_a_change_behind_a_link_is_noticed(workplace):
    pictures = in_folder(workplace)
    (pictures / "other").mkdir()
    (pictures / "test/a/000.png").rename(pictures / "other/first.png")
    (pictures / "test/a/000.png").symlink_to("../../other/first.png")
    assert workplace.fetch() == 0
    (pictures / "other/first.png").write_bytes(folder_members(count=7)["pictures/train/b/006.png"])
    assert workplace.prepare("--validation", "2") == 3


def test_names_that_begin_with_a_dot_are_no_data(workplace):
    pictures = in_folder(workplace)
    for name in ("train/.ipynb_checkpoints/x.png", "train/a/._000.png", ".DS_Store", "train/.#a"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(b"\0")
    (pictures / "train/a/.#001.png").symlink_to("me@host.12:170")
    assert prepared(workplace, "--validation", "2").classes == ["a", "b"]


@pytest.mark.parametrize("mac", [False, True])
def test_what_macos_puts_beside_the_members_of_an_archive_is_left_out(workplace, mac):
    members = cifar_c_members()
    if mac:
        members |= {"CIFAR-10-C/._labels.npy": b"\0\5\x16\7", "CIFAR-10-C/._fog.npy": b"\0\5\x16\7"}
    workplace.publish({"CIFAR-10-C.tar": tar(members, "w")})
    workplace.dataset("cifar10-c")
    assert prepared(workplace, splits=("test",)).metadata["corruptions"] == ["blur", "fog"]


def sixteen(values) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(channels):
    """A gradient from black to white, and 257 times every value of eight bits, which is that value."""
    gradient = np.linspace(0, 65535, 256).reshape(16, 16)
    found = images.decode(sixteen(gradient), 16, channels, where="x")
    assert np.abs(found[..., 0].astype(float) - gradient / 257).max() <= 0.5 + 1e-9
    exact = images.decode(sixteen(np.arange(256).reshape(16, 16) * 257), 16, channels, where="x")
    assert (exact == np.arange(256).reshape(16, 16, 1)).all()
