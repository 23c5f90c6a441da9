"""Look up published corrupted test images (CIFAR-10-C, or data of the same layout) in a prepared file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from moat.base.errors import DataError
from moat.base.remembered import hash_once
from moat.data.datasets import VERSION


class OfficialCorruptions:
    """A prepared file of corrupted test images. The images of a corruption and severity are read on demand.

    Attributes:
        path, sha256: the file and its hash.
        names: the corruptions in it.

    Raises:
        DataError: no such file, or not a dataset of corruptions prepared by this version of moat.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        metadata, self._columns = _open(self.path)
        if not metadata.get("corruptions"):
            raise DataError(f"{self.path}: {metadata['dataset']} is not a dataset of corruptions")
        self.dataset: str = metadata["dataset"]
        self.names: list[str] = metadata["corruptions"]
        self.sha256 = hash_once(self.path)

    @classmethod
    def beside(cls, path: Path) -> "OfficialCorruptions | None":
        """The file ``<name>-c.safetensors`` beside the prepared dataset ``<name>.safetensors``; None without one."""
        found = Path(path).with_name(f"{Path(path).stem}-c.safetensors")
        return cls(found) if found.exists() else None

    def lacks(self, indices: Sequence[int]) -> int:
        """The number of these test images that are missing, as they are if the file holds a subset of the images."""
        return len({int(index) for index in indices} - set(self._columns["index"].tolist()))

    def images(self, corruption: str, severity: int, indices: Sequence[int], labels: Sequence[int]) -> np.ndarray:
        """The corrupted versions of the test images with these indices, uint8 (N, H, W, C).

        Args:
            indices: row numbers in the official test split.
            labels: the images' labels in the clean data set, which must be the same here.

        Raises:
            DataError: an unknown corruption or severity, a missing image, or one with another label.
        """
        where = f"{self.path}: {corruption}, severity {severity}"
        if corruption not in self.names:
            raise DataError(f"{where}: no such corruption; there are {', '.join(self.names)}")
        rows = np.flatnonzero(
            (self._columns["corruption"] == self.names.index(corruption)) & (self._columns["severity"] == severity)
        )
        position = {int(index): place for place, index in enumerate(self._columns["index"][rows])}
        missing = [index for index in indices if int(index) not in position]
        if missing:
            raise DataError(
                f"{where}: no image {missing[0]} ({len(missing)} of {len(indices)} missing); prepare it anew"
            )
        places = np.array([position[int(index)] for index in indices])
        wrong = np.flatnonzero(self._columns["labels"][rows][places] != np.asarray(labels))
        if len(wrong):
            raise DataError(f"{where}: image {indices[wrong[0]]} has another label here; these are not the same images")
        with safe_open(self.path, framework="np") as stream:
            block = stream.get_slice("test.images")[int(rows[0]) : int(rows[-1]) + 1]
        return block[places]

    def describe(self) -> dict[str, Any]:
        """The source of the images, for an evaluation's record."""
        return {"source": "official", "dataset": self.dataset, "data_sha256": self.sha256}


def _open(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata, and all columns of the test split except the images."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with: moat prepare")
    try:
        with safe_open(path, framework="np") as stream:
            metadata = json.loads((stream.metadata() or {}).get("moat", "null"))
            if not isinstance(metadata, dict) or metadata.get("version") != VERSION:
                raise DataError(f"{path}: not a dataset prepared by this version of moat; run moat prepare again")
            names = [name for name in stream.keys() if name.startswith("test.") and name != "test.images"]  # noqa: SIM118
            return metadata, {name.removeprefix("test."): stream.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error
