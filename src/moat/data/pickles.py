"""Read CIFAR's pickles without letting them run code.

The unpickler resolves four names, those that a pickled array refers to, and maps them to the inert classes below: the
pickle itself never creates or changes a numpy object.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from moat.base.errors import DataError

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_MAX_TUPLES = 10_000
_DTYPES = {"u1", "i1", "i2", "i4", "i8", "f4", "f8", "b1"}


class _Dtype:
    """A dtype's description in the pickle."""

    def __init__(self, code, *_):
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state):
        self.order = _text(state[1])

    def dtype(self) -> np.dtype:
        if self.code not in _DTYPES or self.order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError(f"array of {self.order}{self.code}; allowed: {', '.join(sorted(_DTYPES))}")
        return np.dtype(self.order + self.code)


class _Array:
    """An array's description in the pickle: (version, shape, dtype, Fortran order, bytes)."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def array(self) -> np.ndarray:
        if self.state is None:
            raise pickle.UnpicklingError("an array without content")
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, str)):
            raise pickle.UnpicklingError("an array whose content is not plain bytes")
        if isinstance(content, str):
            content = content.encode("latin1")
        return np.frombuffer(content, dtype.dtype()).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Python 3 pickles bytes this way with protocol 2.
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name == "_reconstruct":
            return _Array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Dtype if name == "dtype" else "ndarray"
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only numpy arrays and plain containers are read")


def _check_operations(content: bytes) -> None:
    """Refuse what makes a small pickle take all memory or never end, before any of it is done.

    Tuples that hold one another twice over are endless work as the key of a dict, and a high number of a stored object
    makes room for all those below it. CIFAR's pickles have neither, nor sets.
    """
    tuples, stored, last, count = set(), 0, "", 0
    for operation, argument, _ in pickletools.genops(content):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = stored if argument is None else argument
            stored += 1
            if number > len(content):
                raise pickle.UnpicklingError(f"an object stored as number {number}")
            if last.startswith("TUPLE"):
                tuples.add(number)
            continue
        count += name.startswith("TUPLE")
        if name in ("GET", "BINGET", "LONG_BINGET") and argument in tuples or count > _MAX_TUPLES:
            raise pickle.UnpicklingError("tuples inside tuples")
        if name in ("DUP", "EMPTY_SET", "FROZENSET"):
            raise pickle.UnpicklingError(f"the operation {name}")
        last = name


def load(content: bytes, *, where: str) -> dict[str, Any]:
    """Load a dict of numbers, strings, lists and numeric arrays that Python 2 or 3 has pickled. Keys become str.

    Args:
        where: names the pickle in the error message.

    Raises:
        DataError: not a pickle, not a dict, or not plain data.
    """
    try:
        _check_operations(content)
        result = _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(result, dict):
            raise pickle.UnpicklingError(f"it holds a {type(result).__name__}, not a dict")
        return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in result.items()}
    # A malicious pickle can make the unpickler raise any exception.
    except Exception as error:
        raise DataError(f"{where}: refused pickle ({' '.join(str(error).split()) or type(error).__name__})") from error


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
