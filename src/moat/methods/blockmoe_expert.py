"""One block of a trained BlockMoE's last layer for all images: an expert alone as a model, attacked and judged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from moat.base.errors import DataError
from moat.methods._untrained import Untrained


class BlockMoeExpert(Untrained):
    """The layers but the last one stay gated, and of the last one an expert stays."""

    MIXTURE = "blockmoe"
    PARAMETERS = {
        "initialize_from": {"type": "runs", "description": "the finished BlockMoE, which has one layer more"},
        "expert": {"type": "integer", "minimum": 0, "description": "number of the block of its last layer that stays"},
    }

    def initialize(self, runs: Mapping[str, Path]) -> None:
        (folder,) = runs.values()
        path = Path(folder) / "model.safetensors"
        if not path.exists():
            raise DataError(f"{path}: no such file; `moat train … --out {folder}` makes it")
        try:
            self.model.load_state_dict(of_expert(safetensors.torch.load_file(path), self.recipe["expert"]))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise DataError(f"{path}: has no such layers, or no expert {self.recipe['expert']}: {error}") from error


def of_expert(state: Mapping[str, torch.Tensor], expert: int) -> dict[str, torch.Tensor]:
    """The state of the model with one expert, of that of a whole BlockMoE."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    dropped, kept = (f"layers.{last}.", f"router.gates.{last}."), f"layers.{last}.{expert}."
    found: dict[str, Any] = {name: value for name, value in state.items() if not name.startswith(dropped)}
    found |= {f"tail.0.{name.removeprefix(kept)}": value for name, value in state.items() if name.startswith(kept)}
    return found


METHOD = BlockMoeExpert
