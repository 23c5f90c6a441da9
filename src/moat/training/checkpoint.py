"""Checkpoints: the state of a training run in one file, written atomically.

A file starts with the sha256 of the rest, which reveals damage. The previous checkpoint is kept as well, so that damage
costs the time since then rather than the run.
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
    """The newest and the previous checkpoint of a run, in ``folder``."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.newest = self.folder / "checkpoint.pt"
        self.previous = self.folder / "checkpoint.previous.pt"

    def tidy(self) -> None:
        """Remove what a kill during :meth:`save` left behind. Call it while holding the run's lock."""
        for leftover in self.folder.glob(f".{self.newest.name}.*.part"):
            leftover.unlink()

    def save(self, state: Mapping[str, Any]) -> None:
        """Write ``state`` (tensors, numbers, strings and plain containers) as the newest checkpoint, atomically."""
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
        """The newest undamaged checkpoint, or None. Damage is reported in the log."""
        for path in (self.newest, self.previous):
            if path.exists():
                content = path.read_bytes()
                digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
                if hashlib.sha256(content).digest() == digest:
                    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
                log.warning("%s is damaged; falling back to the checkpoint before it", path)
        return None

    def clear(self) -> None:
        """Delete the checkpoints. Call it once the run's results are on disk."""
        for path in (self.newest, self.previous):
            path.unlink(missing_ok=True)
