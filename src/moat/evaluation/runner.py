"""The evaluation: attack every example, then judge what came back without trusting the attack."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from moat.attacks.steps import frozen
from moat.attacks.suites import Attack, resolve
from moat.data.seeding import generator
from moat.errors import ConfigError, DataError, MoatError
from moat.evaluation import protocols

log = logging.getLogger(__name__)

COLUMNS = ("setting", "index", "label", "predicted", "correct", "confidence", "linf", "steps")
EXPERT_COLUMNS = ("expert_clean", "expert_adversarial")


def evaluate(
    model: nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    settings: Mapping[str, Mapping[str, Any] | Attack],
    *,
    batch_size: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> pd.DataFrame:
    """One row per (setting, example) with the columns of ``COLUMNS``, in this order.

    Whatever an attack returns is projected to its eps-ball, clipped to [0,1] and classified again in float32 and
    evaluation mode. Logits that are not finite count as the prediction -1, which is never correct. For a model
    with ``.route_logits(x)`` the columns ``expert_clean`` and ``expert_adversarial`` say which expert it chose.
    An example's random numbers depend on ``seed``, the setting's name and its index alone, not on the batch.

    Args:
        model: images (B, C, H, W) in [0,1] to logits (B, K); left with its modes and gradients as they were.
        x: images, float in [0,1] (N, C, H, W) or uint8 (N, H, W, C); moved to the model's device batch by batch.
        y: labels (N,), 0 to K-1.
        settings: name -> setting as in ``config/attacks.yaml``, or -> :class:`moat.attacks.suites.Attack`.
        batch_size: examples attacked at once; halved, with a warning, whenever the GPU's memory does not suffice.
        indices: each example's number in its data set, for the column ``index``; 0 to N-1 if not given.

    Raises ConfigError (settings, batch size), DataError (images and labels that do not fit) or MoatError (no image).
    """
    attacks = {name: as_attack(name, setting) for name, setting in settings.items()}
    if not attacks or batch_size < 1:
        raise ConfigError(f"{len(attacks)} attack settings, batch size {batch_size}: allowed are at least 1 of each")
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    indices = range(len(x)) if indices is None else [int(index) for index in indices]
    _check_data(x, y, indices)
    with frozen(model):
        _check_labels(model, x, y)
        size, tables = batch_size, []
        for name, attack in attacks.items():
            rows, size = _evaluate_setting(model, x, y, name, attack, indices, size, seed)
            tables.append(rows)
    return pd.concat(tables, ignore_index=True)


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


def as_attack(name: str, setting: Mapping[str, Any] | Attack) -> Attack:
    """A setting made callable; an :class:`Attack` as it is.

    Raises:
        ConfigError: a wrong setting, or something that is neither.
    """
    if isinstance(setting, Attack):
        return setting
    if isinstance(setting, Mapping):
        return resolve(name, setting)
    raise ConfigError(f"attack setting {name!r}: a mapping, or a callable as Attack(function, eps=…, steps=…)")


def _check_data(x: torch.Tensor, y: torch.Tensor, indices: Sequence[int]) -> None:
    if x.ndim != 4 or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise DataError(f"images are {x.dtype} of shape {tuple(x.shape)}; float (N, C, H, W) or uint8 (N, H, W, C)")
    if y.shape != x.shape[:1] or y.is_floating_point() or len(indices) != len(x) or not len(x):
        raise DataError(
            f"{len(x)} images, labels {y.dtype} of shape {tuple(y.shape)}, {len(indices)} indices: "
            "as many whole-number labels and indices as images are needed, and at least one"
        )
    low, high = (float(value) for value in torch.aminmax(x))
    if x.is_floating_point() and not (low >= 0 and high <= 1):
        raise DataError(f"images range from {low:g} to {high:g}; pixels in [0,1] are needed, without normalisation")


def _check_labels(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    classes = classify(model, images(x[:1], device_of(model))).shape[1]
    low, high = (int(value) for value in torch.aminmax(y))
    if low < 0 or high >= classes:
        raise DataError(f"labels range from {low} to {high}; the model has {classes} classes, 0 to {classes - 1}")


def _evaluate_setting(model, x, y, name, attack, indices, size, seed) -> tuple[pd.DataFrame, int]:
    """The rows of one setting, and the batch size that memory sufficed for."""
    tables, start = [], 0
    while start < len(x):
        batch = slice(start, start + size)
        rows = _within_memory(size, _evaluate_batch, model, x[batch], y[batch], name, attack, indices[batch], seed)
        if rows is None:
            size //= 2
            torch.cuda.empty_cache()
            log.warning("%s: the device's memory is too small; going on with batches of %d", name, size)
            continue
        tables.append(rows)
        start += size
    return pd.concat(tables, ignore_index=True), size


def _within_memory(size, function, *arguments):
    """The function's result; None if the device ran out of memory and the batch can still be halved."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError:
        if size == 1:
            raise
    return None


def _evaluate_batch(model, x, y, name, attack, indices, seed) -> pd.DataFrame:
    device = device_of(model)
    clean, labels = images(x, device), y.to(device, torch.int64)
    draws = [generator(seed, 0, f"evaluate {name}", batch=i) for i in indices] if attack.takes_generator else None
    model.eval()
    if attack.protocol != protocols.CORRECT:
        judged = protocols.get(attack.protocol).measure(model, clean, labels, attack, draws)
        return _rows(*judged, labels, name, attack.steps, indices)
    # Clones, so that an attack that works in place cannot move the centre of the ball.
    attacked = attack(model, clean.clone(), labels.clone(), draws)
    attacked = project(attacked, clean, attack.eps, name)
    return _rows(model, clean, attacked, labels, name, attack.steps, indices)


def project(attacked: torch.Tensor, clean: torch.Tensor, eps: float | None, name: str) -> torch.Tensor:
    """``attacked`` moved into the eps-ball around ``clean`` (no ball for None) and clipped to [0,1].

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


def _rows(model, clean, attacked, labels, name, steps, indices) -> pd.DataFrame:
    confidence, predicted = classify(model, attacked).softmax(1).max(1)
    predicted = torch.where(torch.isfinite(confidence), predicted, -1)
    columns = {
        "label": labels,
        "predicted": predicted,
        "correct": predicted == labels,
        "confidence": confidence,
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
