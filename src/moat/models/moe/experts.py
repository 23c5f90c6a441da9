"""Full networks that all see every image, and how to initialise them from trained runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from moat.base.errors import ConfigError, DataError
from moat.models import nets


class Experts(nn.ModuleList):
    """Nets that are all applied to the same input, each with its own normalisation and batch norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs (E, B, K) of the E experts for images (B, C, H, W) in [0,1]."""
        return torch.stack([expert(x) for expert in self])


def build_experts(count: int, arch: str, outputs: int, options: Mapping[str, Any]) -> Experts:
    """``count`` freshly initialised nets with ``outputs`` logits each; ``options``: of :func:`moat.models.nets.build`.

    Raises:
        ConfigError: fewer than one expert, or an option that :func:`moat.models.nets.build` does not accept.
    """
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"experts: {count!r} is not allowed; a whole number from 1")
    return Experts(nets.build(arch, outputs, **options) for _ in range(count))


def load_experts(experts: Sequence[nn.Module], runs: Mapping[str, Path]) -> None:
    """Copy the best weights of finished runs into the experts, in the order of ``runs``.

    Raises:
        ConfigError: not one run per expert.
        DataError: a run's weights are missing or belong to another net; names the file.
    """
    if len(experts) != len(runs):
        raise ConfigError(f"initialize_from: {len(runs)} runs ({', '.join(runs)}) for {len(experts)} experts; one each")
    for expert, folder in zip(experts, runs.values(), strict=True):
        path = Path(folder) / "model.safetensors"
        if not path.exists():
            raise DataError(f"{path}: no such file; `moat train … --out {folder}` makes it")
        try:
            expert.load_state_dict(safetensors.torch.load_file(path))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise DataError(f"{path}: not the weights of this expert: {error}") from error
