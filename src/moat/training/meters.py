"""Running means of an epoch's metrics, kept on the device so that no step has to wait for the host."""

import math
from collections.abc import Mapping

import torch

from moat.base.errors import TrainingError


class Meter:
    """Sample-weighted means of a method's metrics over one epoch, and a check that the losses are finite.

    Losses are read in :meth:`check` rather than at every step, because reading a number from a GPU waits for it. The
    error still names the first bad batch.
    """

    def __init__(self):
        self.samples = 0
        self.sums: dict[str, torch.Tensor] = {}
        self._unchecked: list[tuple[int, torch.Tensor]] = []

    def add(self, batch: int, samples: int, metrics: Mapping[str, torch.Tensor]) -> None:
        """Add one batch. ``metrics``: scalar tensors, each a mean over the batch, one of them named ``loss``."""
        self.samples += samples
        for name, value in metrics.items():
            value = value.detach().double() * samples
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self._unchecked.append((batch, metrics["loss"].detach()))

    def check(self, method: str, epoch: int) -> None:
        """Check the losses added since the last call.

        Raises:
            TrainingError: one is NaN or infinite; names method, epoch and batch.
        """
        if not self._unchecked:
            return
        values = torch.stack([loss.double() for _, loss in self._unchecked]).tolist()
        for (batch, _), value in zip(self._unchecked, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"method {method}: the loss is {value} at epoch {epoch + 1}, batch {batch + 1}; stopped. "
                    "The last good checkpoint is kept. A lower learning rate or gradient_clip in the recipe may help; "
                    "a changed recipe trains from the start"
                )
        self._unchecked.clear()

    def means(self) -> dict[str, float]:
        return {name: float(value / self.samples) for name, value in self.sums.items()}

    def state_dict(self) -> dict:
        return {"samples": self.samples, "sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping) -> None:
        self.samples, self.sums, self._unchecked = state["samples"], dict(state["sums"]), []
