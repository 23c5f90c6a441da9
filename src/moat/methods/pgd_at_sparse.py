"""PGD-AT (Sparse): a robust dense net is pruned by whole filters, then fine-tuned (HYDRA, arXiv 2002.10509)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from moat.attacks.parts.setting import Attack
from moat.base.errors import DataError
from moat.methods.base import Step
from moat.methods.schedules import learning_rate_factor
from moat.methods.trades import Trades
from moat.models.nets.masked import mask_filters, masked_layers


class PgdAtSparse(Trades):
    """TRADES in two stages: first only the scores that choose the filters move, then only the weights.

    In the first stage the running statistics of batch norm follow the masks, its scale and shift stay; in the
    second stage it is trained with the weights. A filter that is masked is still followed by its batch norm's shift.
    """

    PARAMETERS = {
        "initialize_from": {
            "type": "runs",
            "required": False,
            "description": "the dense net that is pruned, named dense; without it random weights are pruned",
        },
        "mask_optimizer": {"type": "optimizer", "description": "of the filters' scores, in the first stage"},
        "mask_epochs_fraction": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "fraction of the epochs that choose the mask; the rest fine-tune the weights",
        },
        "model.keep_ratio": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "fraction of each layer's filters that is kept",
        },
    }

    optimizer_keys = {"mask": "mask_optimizer", "model": "optimizer"}

    @classmethod
    def build(cls, *, arch: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        dense = {key: value for key, value in options.items() if key != "keep_ratio"}
        return mask_filters(super().build(arch=arch, num_classes=num_classes, options=dense), options["keep_ratio"])

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        super().__init__(model, recipe, autocast=autocast)
        self.mask_epochs = round(recipe["mask_epochs_fraction"] * recipe["epochs"])
        self.stage = "mask"

    def initialize(self, runs: Mapping[str, Path]) -> None:
        """Take over the weights of the run ``dense`` and derive the scores; without it, both stay random."""
        if "dense" in runs:
            load_dense(self.model, runs["dense"])

    def parameters_of(self, optimizer: str) -> list[nn.Parameter]:
        scores = [layer.scores for layer in masked_layers(self.model)]
        if optimizer == "mask":
            return scores
        known = {id(score) for score in scores}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in known]

    def begin_epoch(self, epoch: int) -> None:
        """Let the parameters of the epoch's stage move, and no others."""
        self.stage = "mask" if epoch < self.mask_epochs else "model"
        for name in self.optimizers:
            for parameter in self.parameters_of(name):
                parameter.requires_grad_(name == self.stage)

    def minimize(self, loss: torch.Tensor, optimizer: str = "model") -> None:
        super().minimize(loss, self.stage)

    def learning_rate(self, optimizer: str, step: Step) -> float:
        """The recipe's schedule from its beginning to its end within each of the two stages."""
        border = self.mask_epochs / step.epochs
        begin, end = (0.0, border) if step.epoch < self.mask_epochs else (border, 1.0)
        progress = (step.progress - begin) / (end - begin)
        base = self.recipe[self.optimizer_keys[optimizer]]["lr"]
        return base * learning_rate_factor(self.recipe["schedule"], progress)

    def end_epoch(self, epoch: int, accuracy: Callable[[Attack], float]) -> dict[str, float]:
        lr = self.optimizers[self.stage].param_groups[0]["lr"]
        return {"lr": lr, "stage": 1 if self.stage == "mask" else 2}


def load_dense(model: nn.Module, folder: Path) -> None:
    """Copy the best weights of a finished dense run into a masked net, and derive the scores from them.

    Raises:
        DataError: the file is missing, or of another net; names it.
    """
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise DataError(f"{path}: no such file; it is the dense net that pruning starts from")
    dense = safetensors.torch.load_file(path)
    own = {key: value for key, value in model.state_dict().items() if not key.endswith(".scores")}
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in dense.items()}:
        raise DataError(
            f"{path}: not the dense net of this run; it must be of the same net, width and number of classes"
        )
    model.load_state_dict(dense, strict=False)
    for layer in masked_layers(model):
        layer.reset_scores()


METHOD = PgdAtSparse
