"""A copy of the model that has seen nothing judges the attacked images again.

Whatever the model learned from earlier queries, the copy does not know; whatever depends on the order or the batch, it
sees in another.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import nn

from moat.base.errors import DataError, MoatError
from moat.data.seeding import generator
from moat.evaluation.scoring import classify
from moat.models.guard import guarded
from moat.models.outputs import predicted_class

log = logging.getLogger(__name__)

# Relative to an example's largest logit, less their mean. Other batch sizes may use other convolution kernels, which
# round differently.
TOLERANCE = 5e-3
# One of so many images is also judged alone.
ALONE = 16


def fresh_copy(model: nn.Module, make: Callable[[], nn.Module] | None = None) -> nn.Module | None:
    """A model that has answered no query; None where it cannot be had.

    Args:
        make: builds the model anew, which is better than a copy: a copy may share what the model remembers. Best is
            one in another process, as it shares no module with this one.
    """
    if make is not None:
        return guarded(make())
    try:
        return copy.deepcopy(model)
    except Exception as error:  # Copying calls other people's __deepcopy__.
        log.warning("the model cannot be copied (%s); no fresh copy judges its answers", error)
        return None


def centred_size(logits: torch.Tensor) -> torch.Tensor:
    """Per example (B,), its largest logit less their mean, as what is the same in all of them is seen by no softmax.

    Logits so large that float32 rounds the differences count with that rounding.
    """
    largest = (logits - logits.mean(1, keepdim=True)).abs().amax(1)
    rounding = torch.finfo(torch.float32).eps / TOLERANCE * logits.abs().amax(1)
    return torch.maximum(largest, rounding).clamp(min=torch.finfo(torch.float32).tiny)


def lead(logits: torch.Tensor) -> torch.Tensor:
    """The highest logit minus the second highest (B,)."""
    best = logits.topk(2, 1).values
    return best[:, 0] - best[:, 1]


@dataclass
class FreshJudge:
    """Counts the attacked images that ``model``, which has seen nothing, classifies in another way.

    Attributes:
        model: never called itself: every batch is judged by a copy of it.
        judged, differing: how many images; ``differing`` by attack.
        failure: why it could judge no more: the model in a process of its own fails, or gives no answer.
    """

    model: nn.Module
    seed: int
    judged: int = 0
    differing: dict[str, int] = field(default_factory=dict)
    failure: str = ""

    def __call__(self, attacked: torch.Tensor, rows: pd.DataFrame) -> None:
        # Clean images would tell a model with a memory what to answer later.
        if self.failure or not (rows["linf"] > 0).any():
            return
        try:
            self._judge(attacked, rows)
        except DataError:
            raise
        except MoatError as error:
            self.failure = str(error)

    def _judge(self, attacked: torch.Tensor, rows: pd.DataFrame) -> None:
        name = rows["setting"].iloc[0]
        judge = fresh_copy(self.model) or self.model
        draw = generator(self.seed, 0, f"fresh judge {name}", batch=int(rows["index"].iloc[0]))
        order = torch.randperm(len(attacked), generator=draw)
        alone, together = order[: -(-len(order) // ALONE)], order
        differs = torch.zeros(len(attacked), dtype=torch.bool)
        for part in (*alone.split(1), *together.split(max(1, len(order) // 3))):
            answer = classify(judge, attacked[part.to(attacked.device)]).cpu()
            differs[part] |= _differs(answer, rows.iloc[part.numpy()])
        self.judged += len(attacked)
        self.differing[name] = self.differing.get(name, 0) + int(differs.sum())


def _differs(logits: torch.Tensor, rows: pd.DataFrame) -> torch.Tensor:
    """Which answers (B, K) are not the recorded ones: another class by more than rounding, or another confidence."""
    rounding = TOLERANCE * centred_size(logits)
    predicted = torch.tensor(rows["predicted"].to_numpy())
    confidence = torch.tensor(rows["confidence"].to_numpy())
    other_class = (predicted_class(logits) != predicted) & ~(lead(logits) <= rounding)
    # No logit moves the softmax by more than its own change.
    return other_class | ((logits.softmax(1).amax(1) - confidence).abs() > rounding)
