"""Generated corruptions of test images: made once, kept in a file, and read by every evaluation of these images."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from moat.base.errors import MoatError
from moat.base.files import atomic_path
from moat.base.locks import locked
from moat.data.corruptions.generate import corrupt

log = logging.getLogger(__name__)

VERSION = 1
_KEY = "moat"


@dataclass
class GeneratedCorruptions:
    """The corrupted versions of some test images, in a file of ``folder`` that the first one who needs it makes.

    Another process that needs it meanwhile waits. Where it cannot be written, the images are generated all the same.

    Attributes:
        folder: of such files; they only save time.
        x: uint8 (N, H, W, C); ``indices``: each image's number in its data set.
        wanted: setting such as ``fog-3`` -> corruption and severity.
        made_of: hashes of the data set and of the code that corrupts, as JSON content.
    """

    folder: Path
    x: np.ndarray
    indices: Sequence[int]
    severities: str
    wanted: Mapping[str, tuple[str, int]]
    made_of: Mapping[str, Any]
    seed: int = 0
    _there: bool | None = field(default=None, init=False)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.made_of['data'][:16]}-{self.severities}.safetensors"

    def images(self, setting: str) -> np.ndarray:
        """The images under one of the settings, uint8 (N, H, W, C)."""
        if self._there is None:
            self._there = self._find_or_make()
        if self._there:
            try:
                with safe_open(self.path, framework="np") as stream:
                    return stream.get_slice(setting)[: len(self.x)]
            except (SafetensorError, OSError) as error:
                log.warning("%s cannot be read (%s); corrupting images again", self.path, error)
                self._there = False
        return self._generate(setting)

    def _generate(self, setting: str) -> np.ndarray:
        name, severity = self.wanted[setting]
        return corrupt(self.x, name, severity, seed=self.seed, severities=self.severities, indices=self.indices)

    def _find_or_make(self) -> bool:
        """Whether the file is there."""
        if self._fits():
            return True
        try:
            with locked(self.path, waiting="another process corrupts these images"):
                if not self._fits():
                    self._make()
        except MoatError as error:
            log.warning("%s; corrupted images are not kept", error)
            return False
        return True

    def _fits(self) -> bool:
        """Whether the file has these images, and was made of the same. It may have more images and settings."""
        try:
            with safe_open(self.path, framework="np") as stream:
                about, names = json.loads((stream.metadata() or {}).get(_KEY, "null")), set(stream.keys())
        except (SafetensorError, OSError, ValueError):
            return False
        own = self._about()
        if not isinstance(about, dict) or not self.wanted.keys() <= names:
            return False
        indices = about.pop("indices", [])
        return indices[: len(self.x)] == own.pop("indices") and about == own

    def _about(self) -> dict[str, Any]:
        about = {"version": VERSION, **self.made_of, "severities": self.severities, "seed": self.seed}
        return {**about, "indices": [int(index) for index in self.indices]}

    def _make(self) -> None:
        log.info("corrupting %d images (%s), once for all evaluations of them", len(self.x), self.path)
        with atomic_path(self.path) as temporary:
            _write(temporary, self.wanted, self.x.shape, map(self._generate, self.wanted), self._about())


def _write(
    path: Path, names: Mapping[str, Any], shape: tuple[int, ...], arrays: Iterator[np.ndarray], about: Mapping[str, Any]
) -> None:
    """A safetensors file of equally large uint8 arrays, one after the other: the library wants all of them at once."""
    size = int(np.prod(shape))
    header: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(about)}}
    for number, name in enumerate(names):
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [number * size, (number + 1) * size]}
    content = json.dumps(header).encode()
    # What follows begins at a multiple of eight.
    content += b" " * (-len(content) % 8)
    with open(path, "wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        for array in arrays:
            stream.write(np.ascontiguousarray(array))
