"""The evaluation: attack every example, then score what came back without trusting the attack."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from moat.attacks import resolve
from moat.attacks.parts.setting import Attack
from moat.attacks.parts.steps import frozen
from moat.base.errors import ConfigError, DataError
from moat.evaluation import protocols
from moat.evaluation.measurement import MISCLASSIFIED_BY, Measurement, Observer
from moat.evaluation.scoring import COLUMNS, EXPERT_COLUMNS, check_fit, classify, device_of, images, project
from moat.models.guard import guarded

__all__ = [
    "COLUMNS", "EXPERT_COLUMNS", "MISCLASSIFIED_BY", "as_attack", "classify", "device_of", "evaluate", "images",
    "project",
]  # fmt: skip

Settings = Mapping[str, Mapping[str, Any] | Attack]


def evaluate(
    model: nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    settings: Settings,
    *,
    batch_size: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    worst_case: Mapping[str, Settings] | None = None,
    observe: Observer | None = None,
) -> pd.DataFrame:
    """One row per (setting, example) with the columns of ``COLUMNS``, in this order.

    Whatever an attack returns is projected to its eps-ball, clipped to [0,1] and classified again in float32 and
    evaluation mode. Logits that are not finite count as the prediction -1, which is never correct. For a model
    with ``.route_logits(x)`` the columns ``expert_clean`` and ``expert_adversarial`` say which expert it chose.
    An example's random numbers depend on ``seed``, the setting's name and its index alone, not on the batch; those
    of AutoAttack depend on its own batches. Attacks of several stages and worst cases add ``misclassified_by``.

    Args:
        model: images (B, C, H, W) in [0,1] to logits (B, K); left with its modes and gradients as they were. A model
            that is not moat's gets copies of the images, contiguous, which it may change.
        x: images, float in [0,1] (N, C, H, W) or uint8 (N, H, W, C); moved to the model's device batch by batch.
        y: labels (N,), 0 to K-1.
        settings: name -> setting as in ``config/attacks.yaml``, or -> :class:`moat.attacks.parts.setting.Attack`.
        batch_size: examples attacked at once; halved, with a warning, whenever the GPU's memory does not suffice.
        indices: each example's number in its data set, for the column ``index``; 0 to N-1 if not given.
        worst_case: name -> its settings: rows for the per-example worst of them. Those that are not in ``settings``
            are run only on what is still classified correctly, which changes no verdict.
        observe: called with every batch of attacked images and its rows.

    Raises ConfigError (settings, batch size), DataError (images and labels that do not fit, a model that fails or
    returns no logits) or MoatError (no image).
    """
    model = guarded(model)
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings: {settings!r}; needed: a mapping, name -> setting as in config/attacks.yaml")
    attacks = {name: as_attack(name, setting) for name, setting in settings.items()}
    groups = {
        name: {member: as_attack(member, setting) for member, setting in members.items()}
        for name, members in (worst_case or {}).items()
    }
    check_attacks(model, attacks, groups, batch_size)
    x, y, indices = checked_data(model, x, y, indices)
    with frozen(model):
        measurement = Measurement(model, x, y, indices, batch_size, seed, observe=observe)
        tables = {name: measurement.setting(name, attack) for name, attack in attacks.items()}
        tables |= {name: measurement.worst_case(name, members, tables) for name, members in groups.items()}
    return pd.concat(list(tables.values()), ignore_index=True)


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


def check_attacks(
    model: nn.Module, attacks: Mapping[str, Attack], groups: Mapping[str, Mapping[str, Attack]], batch_size: int
) -> None:
    """At least one setting, all of them applicable to the model, and names that are used once.

    Raises:
        ConfigError: names the setting and why it does not apply.
    """
    if not attacks or batch_size < 1:
        raise ConfigError(f"{len(attacks)} attack settings, batch size {batch_size}: allowed are at least 1 of each")
    for group, members in groups.items():
        if group in attacks or not members:
            raise ConfigError(f"worst case {group!r}: a name of its own and at least one setting are needed")
        protocols.refuse_replicas(members, f"worst case {group!r}")
    everything = {**attacks, **{name: each for members in groups.values() for name, each in members.items()}}
    for name, attack in everything.items():
        if (reason := attack.not_applicable_reason(model)) is not None:
            raise ConfigError(f"attack setting {name!r} does not apply: {reason}")


def as_tensor(values: object, what: str) -> torch.Tensor:
    """A tensor, or an array of any strides and byte order, or a list of numbers, as a tensor.

    Raises:
        DataError: no numbers; ``what`` begins the message.
    """
    if isinstance(values, torch.Tensor):
        return values
    try:
        array = np.asarray(values)
        # torch knows neither negative strides nor other byte orders, and can do little with uint64.
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        unsigned = array.dtype.kind == "u" and array.dtype != np.uint8
        return torch.as_tensor(array.astype(np.int64) if unsigned else array)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: {type(values).__name__} that cannot be a tensor ({error})") from error


def checked_data(model: nn.Module, x, y, indices) -> tuple[torch.Tensor, torch.Tensor, Sequence[int]]:
    """Images, labels and indices as tensors that fit each other and the model.

    Raises:
        DataError: says what does not fit.
    """
    x, y = as_tensor(x, "images"), as_tensor(y, "labels")
    indices = range(len(x)) if indices is None else [int(index) for index in indices]
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
    with frozen(model):
        classes = check_fit(model, x)
    low, high = (int(value) for value in torch.aminmax(y))
    if low < 0 or high >= classes:
        raise DataError(f"labels range from {low} to {high}; the model has {classes} classes, 0 to {classes - 1}")
    return x, y, indices
