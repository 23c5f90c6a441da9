"""DWF with its experts as they were: only the gate learns. An ablation of the joint training."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from moat.methods.dwf import Dwf


class DwfFrozen(Dwf):
    """The update of DWF, with the experts in evaluation mode and none of their parameters moving."""

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        model.experts.requires_grad_(False)
        super().__init__(model, recipe, autocast=autocast)

    def train_mode(self) -> None:
        self.model.train()
        self.model.experts.eval()


METHOD = DwfFrozen
