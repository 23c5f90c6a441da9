"""What is evaluated: a model and test examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class EvaluationTarget:
    """A model in evaluation mode on its device, and test examples.

    Attributes:
        run: what the model is, for the record: dataset, arch, method, class, mixture, seed, scale, weights and
            model_sha256 of a finished run; model, weights, model_sha256 and code_sha256 of a model from elsewhere.
        x, y: uint8 (N, H, W, C) and int64 (N,), on the CPU.
        indices: each example's number in the official test split.
        classes: their names, in the order of the labels.
        data_path, data_sha256: the prepared dataset that the examples are from.
        batch_size: examples attacked at once.
    """

    model: nn.Module
    run: Mapping[str, Any]
    x: torch.Tensor
    y: torch.Tensor
    indices: list[int]
    classes: list[str]
    data_path: Path
    data_sha256: str
    batch_size: int

    @property
    def data(self) -> dict[str, str]:
        """The dataset, for the record."""
        return {"path": str(self.data_path), "sha256": self.data_sha256}
