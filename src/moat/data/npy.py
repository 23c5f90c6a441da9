"""numpy's files of arrays, whose headers may say anything: what they say is compared with what is there.

The sizes are multiplied in whole numbers, which do not overflow as numpy's own do.
"""

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moat.base.errors import DataError
from moat.data.archives import unpacked_limit

_ZIP = b"PK\x03\x04"


def read(content: bytes, *, where: str) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        DataError: it is none, or not a plain one; ``where`` begins the message.
    """
    stream = io.BytesIO(content)
    try:
        shape, fortran, dtype = _header(stream, len(content))
        return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    # Of a hostile header numpy's parser raises almost any exception.
    except Exception as error:
        raise DataError(f"{where}: not a plain .npy array ({' '.join(str(error).split())})") from error


def check_archive(path: Path, names: Collection[str]) -> None:
    """Look at the headers of an .npz file before numpy reads it, which would ask for all the memory that they say.

    Args:
        names: the arrays that will be read; others are not looked at.

    Raises:
        DataError: an array has another size than its header says, or is far larger than the file; names it.
    """
    most = unpacked_limit(path)
    try:
        # Numpy takes what begins in another way for a single array, or for a pickle.
        with path.open("rb") as stream:
            if stream.read(len(_ZIP)) != _ZIP:
                raise ValueError("it is no zip file")
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.removesuffix(".npy") not in names:
                    continue
                if member.file_size > most:
                    raise ValueError(f"{member.filename} has {member.file_size} bytes; allowed: {most}")
                with archive.open(member) as stream:
                    _header(stream, member.file_size)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a whole .npz file of plain arrays ({reason})") from error


def _header(stream: BinaryIO, length: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type. Raises ValueError unless the rest of the ``length`` bytes fits."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    size, held = math.prod(shape) * dtype.itemsize, length - stream.tell()
    if size != held:
        raise ValueError(f"it holds {held} bytes of data where its header says {size}")
    return shape, fortran, dtype
