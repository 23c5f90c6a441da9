"""Checkpoints: the whole state of a training in one file, complete or absent.

A file starts with the sha256 of what follows, so that a damaged one is noticed. The one before is
kept, so that a damaged one costs the time since then and not the run.
"""

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moat.base.files import atomic_path

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32


class Checkpoints:
    """The newest checkpoint of a run and the one before it, in ``folder``."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.newest = self.folder / "checkpoint.pt"
        self.previous = self.folder / "checkpoint.previous.pt"

    def tidy(self) -> None:
        """Remove what a kill in the midst of :meth:`save` left. Call it while holding the run's lock."""
        for leftover in self.folder.glob(f".{self.newest.name}.*.part"):
            leftover.unlink()

    def save(self, state: Mapping[str, Any]) -> None:
        """Write ``state`` (tensors, numbers, strings, plain containers) atomically as the newest checkpoint."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getbuffer()
        with atomic_path(self.newest) as temporary:
            with open(temporary, "wb") as stream:
                stream.write(hashlib.sha256(content).digest())
                stream.write(content)
            if self.newest.exists():
                os.replace(self.newest, self.previous)

    def load(self, device: str | torch.device = "cpu") -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None where there is none; a damaged one is named in the log."""
        for path in (self.newest, self.previous):
            if path.exists():
                state = _read(path, device)
                if state is not None:
                    return state
                log.warning("%s is damaged; falling back to the checkpoint before it", path)
        return None

    def clear(self) -> None:
        """Forget the checkpoints: the run is finished and its results are on disk."""
        for path in (self.newest, self.previous):
            path.unlink(missing_ok=True)


def _read(path: Path, device: str | torch.device) -> dict[str, Any] | None:
    content = path.read_bytes()
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
