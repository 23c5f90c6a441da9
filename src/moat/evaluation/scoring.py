"""How an attack is scored: its result, projected to the ball, is classified again in float32 by the model itself."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from moat.base.errors import DataError, MoatError
from moat.models.guard import Guard, behind
from moat.models.outputs import predicted_class

COLUMNS = ("setting", "index", "label", "predicted", "correct", "confidence", "linf", "steps")
EXPERT_COLUMNS = ("expert_clean", "expert_adversarial")


def images(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A batch on ``device`` as float32 (B, C, H, W) in [0,1], channels last; from that, or from uint8 (B, H, W, C)."""
    if x.dtype == torch.uint8:
        return x.to(device).permute(0, 3, 1, 2).float().div_(255)
    return x.to(device, torch.float32, memory_format=torch.channels_last)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters (or else buffers) are; the CPU for a model with neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def classify(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits (B, K) in float32 and evaluation mode, without gradients and without mixed precision."""
    model.eval()
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return model(x).float()


def check_fit(model: nn.Module, x: torch.Tensor, where: str | None = None) -> int:
    """Show the model two images and one, and return the number of its classes.

    What it refuses here would end an attack with a long traceback, and a batch's last images may be a single one.

    Args:
        x: as for :func:`images`.
        where: begins the messages; the name of the model's guard, or its class, if not given.

    Raises:
        DataError: the model fails, returns no logits, or changes the images; says what it was given.
    """
    # A model that draws random numbers draws the same ones afterwards as without this.
    device = device_of(model)
    shown = model if isinstance(model, Guard) and where is None else Guard(behind(model), where)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for count in (min(2, len(x)), 1):
            logits = classify(shown, images(x[:count], device))
        if model is behind(model):
            # It has no guard that would give it copies.
            batch = images(x[:1], device)
            before = batch.clone()
            classify(model, batch)
            if not torch.equal(batch, before):
                raise DataError(
                    f"{shown.name}: the model changes its input, in place; let it work on a copy, x.clone()"
                )
    return logits.shape[1]


def project(attacked: torch.Tensor, clean: torch.Tensor, eps: float | None, name: str) -> torch.Tensor:
    """``attacked`` projected to the eps-ball around ``clean`` (no ball for None) and clipped to [0,1].

    Raises:
        MoatError: another shape, or pixels that are not numbers; names the setting.
    """
    if attacked.shape != clean.shape:
        raise MoatError(f"{name}: the attack returned shape {tuple(attacked.shape)} for {tuple(clean.shape)}")
    attacked = attacked.detach().to(clean.device, torch.float32)
    if torch.isnan(attacked).any():
        raise MoatError(f"{name}: the attack returned pixels that are not numbers")
    if eps is not None:
        attacked = torch.clamp(attacked, min=clean - eps, max=clean + eps)
    return attacked.clamp(0, 1)


def score(
    model: nn.Module,
    clean: torch.Tensor,
    attacked: torch.Tensor,
    labels: torch.Tensor,
    *,
    name: str,
    steps: int,
    indices: Sequence[int],
) -> pd.DataFrame:
    """One row per example with the columns of ``COLUMNS``; logits that are not finite count as the prediction -1."""
    logits = classify(model, attacked)
    predicted = predicted_class(logits)
    columns = {
        "label": labels,
        "predicted": predicted,
        "correct": predicted == labels,
        "confidence": logits.softmax(1).amax(1),
        "linf": (attacked - clean).abs().flatten(1).amax(1),
        **dict(_experts(model, clean, attacked)),
    }
    frame = pd.DataFrame({key: value.cpu().numpy() for key, value in columns.items()})
    frame.insert(0, "setting", name)
    frame.insert(1, "index", np.asarray(indices, dtype=np.int64))
    frame.insert(COLUMNS.index("steps"), "steps", np.int32(steps))
    return frame


def _experts(model: nn.Module, clean: torch.Tensor, attacked: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if not hasattr(model, "route_logits"):
        return
    with torch.no_grad():
        for column, batch in zip(EXPERT_COLUMNS, (clean, attacked), strict=True):
            yield column, model.route_logits(batch).argmax(1)
