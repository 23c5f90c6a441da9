"""Small datasets in the official layouts, made by the tests."""

import gzip
import io
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image


def pixels(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, side, side, channels)).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(stream, kind)
    return stream.getvalue()


def tar(content: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    """A tar of files; a TarInfo as value is written as it is (links and the like)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in content.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            body = b"" if data is info else data
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def zipped(content: dict) -> bytes:
    """A zip of files; of a value with a ``size``, that many zero bytes (whole mebibytes, packed once)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            if isinstance(data, bytes):
                archive.writestr(name, data)
                continue
            packer = zlib.compressobj(wbits=-15)
            packed = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * (data.size >> 20)
            info = zipfile.ZipInfo(name)
            info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, data.size
            packed += packer.flush()
            info.compress_size = len(packed)
            # The checksum is right where it is looked at.
            info.CRC = zlib.crc32(bytes(data.size)) if data.size < 1 << 26 else 0
            info.header_offset = archive.fp.tell()
            archive.fp.write(info.FileHeader(zip64=False) + packed)
            archive.filelist.append(info)
            archive.NameToInfo[name], archive.start_dir = info, archive.fp.tell()
    return stream.getvalue()


def cifar_members(per_batch: int = 20) -> dict[str, bytes]:
    """The members of cifar-10-python.tar.gz, ``per_batch`` rows each; labels go round."""
    folder, content = "cifar-10-batches-py/", {}
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows = pixels(per_batch, seed=number).transpose(0, 3, 1, 2).reshape(per_batch, 3072)
        labels = [k % 10 for k in range(per_batch)]
        content[folder + name] = pickle.dumps({b"data": rows, b"labels": labels, b"batch_label": b"x"}, protocol=2)
    names = [f"class {k}".encode() for k in range(10)]
    content[folder + "batches.meta"] = pickle.dumps({b"label_names": names}, protocol=2)
    return content


def folder_members(prefix: str = "pictures/", side: int = 8, classes: str = "ab", count: int = 6) -> dict[str, bytes]:
    """<prefix>{train,test}/<class>/<n>.png"""
    images = pixels(2 * len(classes) * count, side)
    numbers = iter(range(len(images)))
    return {
        f"{prefix}{split}/{label}/{k:03}.png": encoded(images[next(numbers)])
        for split in ("train", "test")
        for label in classes
        for k in range(count)
    }


def tiny_members(classes: tuple[str, ...] = ("n02", "n01"), count: int = 4) -> dict[str, bytes]:
    """The layout of tiny-imagenet-200.zip; wnids.txt is not sorted there either."""
    root, content, lines, seed = "tiny-imagenet-200/", {}, [], 0
    for label in classes:
        for k in range(count):
            seed += 1
            content[f"{root}train/{label}/images/{label}_{k}.JPEG"] = encoded(pixels(1, 64, seed=seed)[0], "JPEG")
        content[f"{root}train/{label}/{label}_boxes.txt"] = b"boxes"
    for k in range(count):
        content[f"{root}val/images/val_{k}.JPEG"] = encoded(pixels(1, 64, seed=100 + k)[0], "JPEG")
        lines.append(f"val_{k}.JPEG\t{classes[k % 2]}\t0\t0\t9\t9")
    content[root + "wnids.txt"] = "\n".join(classes).encode()
    content[root + "val/val_annotations.txt"] = "\n".join(lines).encode()
    return content


def idx_file(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


def mnist_files(count: int = 20) -> dict[str, bytes]:
    labels = (np.arange(count) % 10).astype(np.uint8)
    content = {}
    for number, split in enumerate(("train", "t10k")):
        content[f"{split}-images-idx3-ubyte.gz"] = idx_file(pixels(count, 28, 1, seed=number)[..., 0])
        content[f"{split}-labels-idx1-ubyte.gz"] = idx_file(labels)
    return content


def mat_file(count: int = 20, **changes) -> bytes:
    """SVHN's layout: the digit 0 is labelled 10."""
    import scipy.io

    labels = np.arange(count) % 10
    content = {"X": pixels(count).transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype("u1")}
    stream = io.BytesIO()
    scipy.io.savemat(stream, {k: v for k, v in (content | changes).items() if v is not None}, do_compression=True)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def cifar_c_members(count: int = 10) -> dict[str, bytes]:
    content = {f"CIFAR-10-C/{name}.npy": npy(pixels(5 * count, seed=k)) for k, name in enumerate(("fog", "blur"))}
    return content | {"CIFAR-10-C/labels.npy": npy(np.tile(np.arange(count) % 10, 5))}
