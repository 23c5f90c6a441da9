"""Everything that can be wrong with data: exit code 3, the file and the reason named, nothing under a final name."""

import errno
import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import yaml
from PIL import Image
from small_data import (
    cifar_c_members,
    cifar_members,
    encoded,
    folder_members,
    idx_file,
    mat_file,
    mnist_files,
    npy,
    pixels,
    tar,
    tiny_members,
    zipped,
)

import moat.base.files
import moat.data.download

ARCHIVE = "cifar-10-python.tar.gz"
CONTENT = b"0123456789" * 1000


def refused(workplace, capsys, code: int, *words: str) -> None:
    assert code == 3
    error = capsys.readouterr().err.splitlines()[-1]
    if not any(str(workplace.root) in word for word in words):
        # The temporary folder is called like the test, whose name may hold the words.
        error = error.replace(str(workplace.root), "")
    assert [word for word in words if word not in error] == [], error


# -- the transfer -------------------------------------------------------------
def _html(request, name):
    request.answer(b"<html>sign in</html>", kind="text/html; charset=utf-8")
    return True


def _html_in_disguise(request, name):
    request.answer(b"\n<!DOCTYPE html><html>sign in</html>")
    return True


def _error(code):
    def behave(request, name):
        request.send_error(code)
        return True

    return behave


def _cut(request, name):
    request.answer(CONTENT, only=0 if request.headers.get("Range") else 5000)
    return True


def _shorter(request, name):
    request.answer(CONTENT[:5000])
    return True


def _other(request, name):
    request.answer(CONTENT[::-1])
    return True


@pytest.mark.parametrize(
    "behave, words",
    [
        (_cut, ["gave up after 3 attempts", "5000 of 10000 bytes"]),
        (_shorter, ["5000 bytes", "expected 10000"]),
        (_other, ["sha256 is", "expected"]),
        (_html, ["HTML page instead of the file"]),
        (_html_in_disguise, ["HTML page instead of the file"]),
        (_error(404), ["no such file (HTTP 404)"]),
        (_error(403), ["HTTP 403"]),
        (_error(503), ["gave up after 3 attempts", "HTTP 503"]),
    ],
)
def test_download(workplace, site, capsys, behave, words):
    site.behave = behave
    size = None if behave in (_html, _html_in_disguise) else len(CONTENT)
    entry = {"name": ARCHIVE, "urls": [f"{site.url}/x"], "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": size}
    workplace.dataset(files=[{key: value for key, value in entry.items() if value is not None}])
    refused(workplace, capsys, workplace.fetch(), ARCHIVE, f"{site.url}/x", *words)
    assert workplace.left() == set()


def test_nobody_answers(workplace, capsys):
    workplace.dataset(files=[{"name": ARCHIVE, "urls": ["http://127.0.0.1:9/x"], "md5": "0" * 32}])
    refused(workplace, capsys, workplace.fetch(), ARCHIVE, "http://127.0.0.1:9/x", "gave up", "refused")
    assert workplace.left() == set()


SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    "sums, words",
    [
        (None, ["no SHA256SUMS in this mirror"]),
        ("", ["SHA256SUMS", "no entry for", ARCHIVE]),
        (f"{SUM}  other.tar.gz\n", ["SHA256SUMS", "no entry for", ARCHIVE]),
        (f"{SUM}  a/{ARCHIVE}\n{SUM}  b/{ARCHIVE}\n", ["several entries", ARCHIVE]),
        (f"{SUM} {ARCHIVE}\n", ["SHA256SUMS, line 1"]),
        (f"{SUM}  ../{ARCHIVE}\n", ["SHA256SUMS, line 1", "../"]),
        (f"{'0' * 64}  {ARCHIVE}\n", [ARCHIVE, f"sha256 is {SUM}", f"expected {'0' * 64}"]),
        (f"{SUM}  gone/{ARCHIVE}\n", ["gone", "no such file"]),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "http"])
def test_mirror(workplace, site, capsys, kind, sums, words):
    workplace.publish({ARCHIVE: CONTENT}, sums=False)
    site.files[ARCHIVE] = CONTENT
    if sums is not None:
        (workplace.mirror / "SHA256SUMS").write_text(sums)
        site.files["SHA256SUMS"] = sums.encode()
    workplace.dataset()
    code = workplace.fetch("--mirror", site.url if kind == "http" else str(workplace.mirror))
    refused(workplace, capsys, code, *words)
    assert workplace.left() == set()


@pytest.mark.parametrize("mirror", ["ftp://mirror", "/no/such/folder"])
def test_no_mirror_at_all(workplace, capsys, mirror):
    workplace.dataset()
    refused(workplace, capsys, workplace.fetch("--mirror", mirror), mirror)


# -- no space -----------------------------------------------------------------
class _FullDisk:
    """A file whose device is full after ``room`` bytes."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, data):
        self.stream.write(data[: self.room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_while_fetching(workplace, capsys, monkeypatch):
    workplace.publish({ARCHIVE: tar(cifar_members(2))})
    workplace.dataset()

    def full(path, mode="rb"):
        stream = open(path, mode)  # noqa: SIM115 - the caller closes it
        return _FullDisk(stream, 100) if mode == "wb" else stream

    with monkeypatch.context() as patch:
        patch.setattr(moat.data.download, "open", full, raising=False)
        code = workplace.fetch("--mirror", str(workplace.mirror))
    refused(workplace, capsys, code, ARCHIVE, "no space left on the device")
    assert workplace.left() == set()
    assert (workplace.into / f"{ARCHIVE}.part").stat().st_size == 100
    assert workplace.fetch("--mirror", str(workplace.mirror)) == 0


def test_no_space_while_preparing(workplace, capsys, monkeypatch):
    workplace.publish({ARCHIVE: tar(cifar_members(4))})
    workplace.dataset()
    assert workplace.fetch("--mirror", str(workplace.mirror)) == 0
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(moat.base.files.os, "fsync", lambda _: (_ for _ in ()).throw(full))
    refused(workplace, capsys, workplace.prepare("--validation", "2"), str(workplace.out), "no space left")
    assert workplace.left() == {ARCHIVE, "manifest.json"}
    assert not list(workplace.root.glob("*.part")) and not list(workplace.root.glob(".*.part"))


def test_no_space_on_a_real_full_device(workplace, capsys):
    """A file system of 256 KiB: too small for the archive, then, emptied, for the prepared file."""
    small = workplace.root / "device"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs; the other two cases simulate a full device")
    try:
        workplace.publish({ARCHIVE: tar(cifar_members(40))})
        workplace.dataset()
        code = workplace.moat("fetch", "small", "--into", small, "--mirror", workplace.mirror)
        refused(workplace, capsys, code, str(small), ARCHIVE, "no space left on the device")
        assert not (small / ARCHIVE).exists() and not (small / "manifest.json").exists()
        (small / f"{ARCHIVE}.part").unlink()
        assert workplace.fetch("--mirror", str(workplace.mirror)) == 0
        out = small / "x.safetensors"
        code = workplace.moat("prepare", "small", "--from", workplace.into, "--out", out, "--validation", "2")
        refused(workplace, capsys, code, str(out), "No space left")
        assert not out.exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


# -- content ------------------------------------------------------------------
def _link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


class _Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def _cifar(changes: dict | None = None, *, without: str | None = None) -> dict[str, bytes]:
    content = cifar_members(4) | {f"cifar-10-batches-py/{name}": data for name, data in (changes or {}).items()}
    content.pop(f"cifar-10-batches-py/{without}", None)
    return {ARCHIVE: tar(content)}


def _nested_key(depth: int) -> bytes:
    """A dict whose key is a pair of the same pair, and so on: 2^depth steps for its hash."""
    pairs = b"".join(b"h%c" % k * 2 + b"\x86q%c" % (k + 1) for k in range(depth))
    return b"\x80\x02})q\x00" + pairs + b"K\x01s."


def _long_name(size: int) -> bytes:
    """A tar whose first member is a name of so many zero bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    head = info.tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(head) + gzip.compress(bytes(1 << 20)) * (size >> 20)


def _batch(**changes) -> dict[str, bytes]:
    batch = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]} | changes
    return {"data_batch_2": pickle.dumps(batch, protocol=2)}


GOOD_TAR = tar(cifar_members(4))
CIFAR_CASES = {
    "not an archive": ({ARCHIVE: b"these are not the bytes" * 50}, ["not a whole tar or zip archive"]),
    "empty file": ({ARCHIVE: b""}, ["not a whole tar or zip archive"]),
    "truncated": ({ARCHIVE: GOOD_TAR[: len(GOOD_TAR) // 2]}, ["archive"]),
    "damaged": ({ARCHIVE: GOOD_TAR[:9000] + b"\0" * 500 + GOOD_TAR[9500:]}, ["archive"]),
    "missing member": (_cifar(without="data_batch_3"), ["no member data_batch_3"]),
    "missing names": (_cifar(without="batches.meta"), ["no member batches.meta"]),
    "../ member": (_cifar({"../../evil": b"x"}), ["../../evil", "points outside"]),
    "absolute member": ({ARCHIVE: tar({**cifar_members(4), "/tmp/evil": b"x"})}, ["/tmp/evil", "points outside"]),
    "symbolic link": (_cifar({"data_batch_1": _link("/etc/passwd")}), ["data_batch_1", "link"]),
    "hard link": (_cifar({"other": _link("data_batch_1", tarfile.LNKTYPE)}), ["other", "link"]),
    "pipe": (_cifar({"other": _link("", tarfile.FIFOTYPE)}), ["other", "special file"]),
    "a name of 3 GB": ({ARCHIVE: _long_name(3 << 30)}, ["a header of 3221225472 bytes"]),
    "no pickle": (_cifar({"test_batch": b"\x80\x02nonsense"}), ["test_batch", "refused pickle"]),
    "pickle of a list": (_cifar({"test_batch": pickle.dumps([1])}), ["test_batch", "not a dict"]),
    "pickled objects": (_cifar(_batch(data=np.array([object], object))), ["data_batch_2", "refused pickle"]),
    "wrong shape": (_cifar(_batch(data=np.zeros((4, 9), np.uint8))), ["data_batch_2", "3,072 bytes"]),
    "no data": (_cifar(_batch(data=None)), ["data_batch_2", "'data'"]),
    "too few labels": (_cifar(_batch(labels=[1])), ["data_batch_2", "'labels'"]),
    "labels of text": (_cifar(_batch(labels=["a"] * 4)), ["data_batch_2", "'labels'"]),
    "label out of range": (_cifar(_batch(labels=[0, 1, 2, 10])), ["labels from 0 to 10", "0 to 9"]),
    "tuples in tuples as a key": (_cifar({"data_batch_1": _nested_key(64)}), ["data_batch_1", "tuples inside tuples"]),
    "a number that makes room": (
        _cifar({"test_batch": b"\x80\x02}r\xff\xff\xff\x7f."}),
        ["test_batch", "number 2147483647"],
    ),
    "a set": (_cifar({"test_batch": pickle.dumps({"a": {1}}, 4)}), ["test_batch", "EMPTY_SET"]),
    "wrong classes": (_cifar({"batches.meta": pickle.dumps({"label_names": ["a"]})}), ["name 1 classes"]),
}


@pytest.mark.parametrize("case", CIFAR_CASES)
def test_cifar(workplace, capsys, case):
    content, words = CIFAR_CASES[case]
    workplace.publish(content)
    workplace.dataset()
    refused(workplace, capsys, workplace.fetch_and_prepare("--validation", "2"), *words)
    assert not workplace.out.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call",
    [
        lambda marker: (os.system, f"touch {marker}"),
        lambda marker: (eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: (open, str(marker), "w"),
        lambda marker: (getattr, "text", "upper"),
    ],
)
def test_malicious_pickle(workplace, capsys, call, protocol):
    marker = workplace.root / "pwned"
    evil = pickle.dumps({"data": _Evil(*call(marker)), "labels": []}, protocol=protocol)
    workplace.publish(_cifar({"data_batch_1": evil}))
    workplace.dataset()
    code = workplace.fetch_and_prepare("--validation", "2")
    refused(workplace, capsys, code, ARCHIVE, "data_batch_1", "refused pickle", "it asks for", "only numpy arrays")
    assert not marker.exists() and not workplace.out.exists()


def _zip_with_link() -> bytes:
    stream = io.BytesIO(zipped(folder_members()))
    with zipfile.ZipFile(stream, "a") as archive:
        info = zipfile.ZipInfo("pictures/train/a/999.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


class _Zeros:
    """So many zero bytes, which are never all in memory."""

    def __init__(self, size: int):
        self.size = size


def _with_image(content: bytes) -> bytes:
    return zipped({**PICTURES, "pictures/train/a/000.png": content})


def _png(width: int, height: int) -> bytes:
    """A grey PNG, all black, written row by row."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(stream, "TIFF")
    return stream.getvalue()


PICTURES = folder_members()
A_PNG = PICTURES["pictures/train/a/000.png"]
WIDE_ZIP = zipped(PICTURES)
FOLDER_CASES = {
    "not an archive": (b"GIF89a" * 99, ["not a whole tar or zip archive"]),
    "truncated zip": (WIDE_ZIP[:-300], ["not a whole tar or zip archive"]),
    "damaged zip": (WIDE_ZIP[:60] + bytes([WIDE_ZIP[60] ^ 255]) + WIDE_ZIP[61:], ["train/a/000.png", "damaged"]),
    "../ member": (zipped({**PICTURES, "../evil.png": A_PNG}), ["../evil.png", "points outside"]),
    "backslash member": (zipped({**PICTURES, "..\\evil.png": A_PNG}), ["evil.png", "points outside"]),
    "link in a zip": (_zip_with_link(), ["999.png", "link"]),
    "corrupt image": (zipped({**PICTURES, "pictures/train/a/000.png": A_PNG[:60]}), ["train/a/000.png", "corrupt"]),
    "text as image": (zipped({**PICTURES, "pictures/test/b/000.png": b"hello"}), ["test/b/000.png", "corrupt"]),
    "no test split": (zipped({k: v for k, v in PICTURES.items() if "/test/" not in k}), ["test/<class>/"]),
    "no images": (zipped({"readme.txt": b"x"}), ["train/<class>/"]),
    "class only in test": (zipped({**PICTURES, "pictures/test/c/0.png": A_PNG}), ["test/c/0.png", "'c'"]),
    "one class more": (
        zipped({**PICTURES, "pictures/train/c/0.png": A_PNG, "pictures/test/c/0.png": A_PNG}),
        ["num_classes is 2", "3 classes"],
    ),
    "two roots": (zipped({**PICTURES, **folder_members("again/")}), ["'again'", "'pictures'"]),
    "3 GB in 3 MB": (zipped({**PICTURES, "pictures/train/a/x.png": _Zeros(3 << 30)}), ["x.png", "3221225472 bytes"]),
    "much of everything": (
        zipped({**PICTURES, **{f"pictures/train/a/{k}.png": _Zeros(4 << 20) for k in range(20)}}),
        ["its members have more than", "64 MiB and a hundred times"],
    ),
    "1 x 8,000,000 pixels": (_with_image(_png(1, 8_000_000)), ["000.png", "1 x 8000000 pixels"]),
    "EPS named .png": (_with_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), ["000.png", "corrupt image"]),
    "32 bits a pixel": (_with_image(_tiff()), ["000.png", "32 bits"]),
}


@pytest.mark.parametrize("case", FOLDER_CASES)
def test_image_folder(workplace, capsys, case):
    content, words = FOLDER_CASES[case]
    workplace.publish({"pictures.zip": content})
    workplace.dataset("cifar10-jpeg", files=[{"name": "pictures.zip", "sha256": "0" * 64}], num_classes=2, image_size=8)
    refused(workplace, capsys, workplace.fetch_and_prepare("--validation", "2"), *words)
    assert not workplace.out.exists()


def _svhn(train: bytes) -> dict[str, bytes]:
    return {"train_32x32.mat": train, "test_32x32.mat": mat_file()}


def _idx(shape: tuple[int, ...], content: "bytes | _Zeros") -> bytes:
    """A gzipped IDX file whose header says this shape."""
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    if isinstance(content, bytes):
        return gzip.compress(header + content)
    return gzip.compress(header) + gzip.compress(bytes(1 << 20)) * (content.size >> 20)


def _npy_header(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(8192) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(99)


def _bomb() -> bytes:
    """A MATLAB file with X of 3 GB, all zeros."""
    import scipy.io

    stream = io.BytesIO()
    scipy.io.savemat(stream, {"X": np.zeros((32, 32, 3, 1), np.uint8)})
    whole = stream.getvalue()
    sizes = np.array([32, 32, 3, 1 << 20], "<i4").tobytes()
    body = whole[128:].replace(np.array([32, 32, 3, 1], "<i4").tobytes(), sizes)
    packed = zlib.compress(body)
    return whole[:128] + struct.pack("<II", 15, len(packed)) + packed


MNIST = mnist_files()
IMAGES = "train-images-idx3-ubyte.gz"
OTHER_CASES = {
    "mat: no mat": ("svhn", {"train_32x32.mat": b"x" * 500, "test_32x32.mat": mat_file()}, ["train_32x32.mat"]),
    "mat: no X": ("svhn", {"train_32x32.mat": mat_file(X=None), "test_32x32.mat": mat_file()}, ["'X'", "train_32x32"]),
    "mat: truncated": (
        "svhn",
        {"train_32x32.mat": mat_file()[:900], "test_32x32.mat": mat_file()},
        ["train_32x32.mat"],
    ),
    "mat: floats": (
        "svhn",
        {"train_32x32.mat": mat_file(X=np.zeros((32, 32, 3, 20))), "test_32x32.mat": mat_file()},
        ["train_32x32.mat", "float64"],
    ),
    "idx: no gzip": ("mnist", {**MNIST, IMAGES: b"x" * 50}, [IMAGES, "gzip"]),
    "idx: truncated": ("mnist", {**MNIST, IMAGES: MNIST[IMAGES][:-50]}, [IMAGES, "gzip"]),
    "idx: labels": ("mnist", {**MNIST, IMAGES: idx_file(np.zeros(20, np.uint8))}, [IMAGES, "not an IDX file"]),
    "idx: counts": (
        "mnist",
        {**MNIST, "train-labels-idx1-ubyte.gz": idx_file(np.zeros(19, np.uint8))},
        ["20 images and 19 labels"],
    ),
    "idx: 3 GB in 3 MB": ("mnist", {**MNIST, IMAGES: _idx((3 << 20, 32, 32), _Zeros(3 << 30))}, [IMAGES, "more than"]),
    "idx: 2^64 bytes": (
        "mnist",
        {**MNIST, IMAGES: _idx((2**32 - 1, 2**16, 2**16), bytes(9))},
        [IMAGES, str((2**32 - 1) << 32)],
    ),
    "idx: nothing times a lot": (
        "mnist",
        {**MNIST, IMAGES: _idx((0, 2**32 - 1, 2**32 - 1), b"")},
        ["0 x 4294967295", "no data"],
    ),
    "mat: 3 GB in 3 MB": (
        "svhn",
        {"train_32x32.mat": _bomb(), "test_32x32.mat": mat_file()},
        ["train_32x32.mat", "numbers"],
    ),
    "c: 2^64 bytes": (
        "cifar10-c",
        {
            "CIFAR-10-C.tar": tar(
                {**cifar_c_members(), "CIFAR-10-C/fog.npy": _npy_header("(4294967296, 4294967296, 1, 1)")}, "w"
            )
        },
        ["fog.npy", "18446744073709551616"],
    ),
    "c: a shape of brackets": (
        "cifar10-c",
        {"CIFAR-10-C.tar": tar({**cifar_c_members(), "CIFAR-10-C/fog.npy": _npy_header("(" * 5000)}, "w")},
        ["fog.npy", "plain .npy"],
    ),
    "c: labels image by image": (
        "cifar10-c",
        {"CIFAR-10-C.tar": tar({**cifar_c_members(), "CIFAR-10-C/labels.npy": npy(np.repeat(np.arange(10), 5))}, "w")},
        ["labels.npy", "five blocks", "differ"],
    ),
    "c: labels of text": (
        "cifar10-c",
        {"CIFAR-10-C.tar": tar({**cifar_c_members(), "CIFAR-10-C/labels.npy": npy(np.array(["a"] * 50))}, "w")},
        ["labels.npy", "five blocks of labels"],
    ),
    "c: pickled": (
        "cifar10-c",
        {"CIFAR-10-C.tar": tar({**cifar_c_members(), "CIFAR-10-C/fog.npy": npy(np.array([{}], object))}, "w")},
        ["fog.npy", "plain .npy"],
    ),
    "c: no labels": (
        "cifar10-c",
        {"CIFAR-10-C.tar": tar({k: v for k, v in cifar_c_members().items() if "labels" not in k}, "w")},
        ["no member labels"],
    ),
    "c: rows": (
        "cifar10-c",
        {"CIFAR-10-C.tar": tar({**cifar_c_members(), "CIFAR-10-C/fog.npy": npy(pixels(45))}, "w")},
        ["fog.npy", "50 rows"],
    ),
    "tiny: no annotation": (
        "tiny-imagenet",
        {"tiny-imagenet-200.zip": zipped({**tiny_members(), "tiny-imagenet-200/val/val_annotations.txt": b"x\ty\n"})},
        ["val_0.JPEG", "val_annotations.txt"],
    ),
    "tiny: no wnids": (
        "tiny-imagenet",
        {"tiny-imagenet-200.zip": zipped({k: v for k, v in tiny_members().items() if "wnids" not in k})},
        ["no member wnids.txt"],
    ),
    "tiny: corrupt": (
        "tiny-imagenet",
        {
            "tiny-imagenet-200.zip": zipped(
                {**tiny_members(), "tiny-imagenet-200/train/n01/images/n01_0.JPEG": encoded(pixels(1)[0], "JPEG")[:400]}
            )
        },
        ["n01_0.JPEG", "corrupt"],
    ),
}


@pytest.mark.brief(keep=lambda case: case["case"] != "idx: 3 GB in 3 MB")
@pytest.mark.parametrize("case", OTHER_CASES)
def test_other_formats(workplace, capsys, case):
    base, content, words = OTHER_CASES[case]
    workplace.publish(content)
    workplace.dataset(base, **({"num_classes": 2} if base == "tiny-imagenet" else {}))
    refused(workplace, capsys, workplace.fetch_and_prepare("--validation", "2"), *words)
    assert not workplace.out.exists()


# -- between fetching and preparing ---------------------------------------------
def _change_file(workplace):
    (workplace.into / ARCHIVE).write_bytes(b"other")


def _remove_file(workplace):
    (workplace.into / ARCHIVE).unlink()


def _remove_manifest(workplace):
    (workplace.into / "manifest.json").unlink()


def _break_manifest(workplace):
    (workplace.into / "manifest.json").write_text('{"version": 1')


def _old_manifest(workplace):
    (workplace.into / "manifest.json").write_text("[]")


def _of_another_dataset(workplace):
    path = workplace.into / "manifest.json"
    path.write_text(path.read_text().replace('"dataset": "small"', '"dataset": "large"'))


@pytest.mark.parametrize(
    "change, words",
    [
        (_change_file, [ARCHIVE, "sha256", "differs"]),
        (_remove_file, [ARCHIVE, "no such file"]),
        (_remove_manifest, ["manifest.json", "no such file", "moat fetch small"]),
        (_break_manifest, ["manifest.json", "not valid JSON"]),
        (_old_manifest, ["manifest.json", "run moat fetch again"]),
        (_of_another_dataset, ["manifest.json", "'large'", "'small'"]),
    ],
)
def test_changed_after_fetching(workplace, capsys, change, words):
    workplace.publish({ARCHIVE: GOOD_TAR})
    workplace.dataset()
    assert workplace.fetch("--mirror", str(workplace.mirror)) == 0
    change(workplace)
    refused(workplace, capsys, workplace.prepare("--validation", "2"), *words)
    assert not workplace.out.exists()


def test_local_folder_that_is_gone(workplace, capsys):
    workplace.dataset("cifar10-jpeg", files=[], folder="pictures", num_classes=2)
    refused(workplace, capsys, workplace.fetch(), str(workplace.root / "pictures"), "no such folder")
    assert workplace.left() == set()


def test_description_without_files_or_folder(workplace, capsys):
    workplace.dataset("cifar10-jpeg", files=[], num_classes=2)
    refused(workplace, capsys, workplace.fetch_and_prepare(), "small", "one file or folder")
    assert yaml.safe_load((workplace.into / "manifest.json").read_text())["files"] == []


# -- within a gigabyte -------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize(
    ("base", "content"),
    [
        ("cifar10-jpeg", {"pictures.zip": FOLDER_CASES["3 GB in 3 MB"][0]}),
        ("mnist", OTHER_CASES["idx: 3 GB in 3 MB"][1]),
        ("svhn", OTHER_CASES["mat: 3 GB in 3 MB"][1]),
        ("cifar10-c", OTHER_CASES["c: 2^64 bytes"][1]),
        ("cifar10", CIFAR_CASES["a number that makes room"][0]),
        ("cifar10", CIFAR_CASES["a name of 3 GB"][0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bomb_is_refused_with_little_memory(workplace, base, content):
    """In a process that gets an error for more than 1 GB beside what Python and its libraries have mapped."""
    workplace.publish(content)
    changes = {"files": [{"name": "pictures.zip", "sha256": "0" * 64}], "image_size": 8} if "jpeg" in base else {}
    workplace.dataset(base, **changes)
    assert workplace.fetch("--mirror", str(workplace.mirror)) == 0
    code = (
        "import resource, sys; from moat.commands.cli import main; import moat.data.datasets, scipy.io\n"
        "mapped = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30),) * 2)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--project", str(workplace.root), "prepare", "small", "--from", str(workplace.into)]
    command = [sys.executable, "-c", code, *options, "--out", str(workplace.out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1, done.stderr


# -- links in a folder --------------------------------------------------------------
def _outside(pictures):
    (pictures / "test/b").rename(pictures.parent / "b")
    (pictures / "test/b").symlink_to(pictures.parent / "b")


def _nowhere(pictures):
    (pictures / "test/b/none.png").symlink_to("gone.png")


def _circle(pictures):
    (pictures / "test/b/again").symlink_to("../../test")


def _pipe(pictures):
    os.mkfifo(pictures / "test/b/pipe.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_outside, ["test/b is a link", "nowhere in it"]),
        (_nowhere, ["test/b/none.png is a link", "nowhere in it"]),
        (_circle, ["test/b/again is a link", "a folder that holds it"]),
        (_pipe, ["test/b/pipe.png is a special file"]),
    ],
)
def test_what_cannot_be_followed_in_a_folder_is_refused(workplace, capsys, change, words):
    for name, content in PICTURES.items():
        (workplace.root / name).parent.mkdir(parents=True, exist_ok=True)
        (workplace.root / name).write_bytes(content)
    workplace.dataset("cifar10-jpeg", files=[], folder="pictures", num_classes=2, image_size=8)
    change(workplace.root / "pictures")
    refused(workplace, capsys, workplace.fetch(), *words)
    assert workplace.left() == set()
