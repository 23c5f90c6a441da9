"""Loads what is evaluated: a finished run or anybody's classifier, and test examples.

Imports torch: commands import this module once they hold their GPU.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from moat.base.errors import DataError
from moat.base.files import hash_file
from moat.commands import foreign_model
from moat.commands.options import FinishedRun, ForeignModel, Preparation, TargetRequest
from moat.data import datasets, manifest
from moat.data.fetch import fetch
from moat.evaluation.plan import TransferModel
from moat.evaluation.scoring import check_fit
from moat.evaluation.target import EvaluationTarget
from moat.kernels import for_training
from moat.models.guard import guarded
from moat.training import models
from moat.training.run_record import identity

log = logging.getLogger(__name__)


def load(request: TargetRequest, device: torch.device) -> EvaluationTarget:
    """The model on ``device`` and its examples.

    Raises:
        ConfigError: a factory that cannot be imported or called.
        DataError: weights or data that are missing, damaged, or do not fit.
    """
    model = load_model(request.model, device)
    described = request.model.described if isinstance(request.model, FinishedRun) else _described(request.model, model)
    if request.preparation is not None and not request.data.exists():
        _prepare(request.preparation, request.data)
    data = datasets.load(request.data, splits=("test",))
    trained_with = request.record.get("data", {}).get("sha256", data.sha256)
    if trained_with != data.sha256:
        log.warning("%s is not the dataset of this run's training (sha256 %s…)", request.data, trained_with[:12])
    split = data.splits["test"]
    x, y = split.images[: request.limit], split.labels[: request.limit]
    where = f"{request.model.option} --data {request.data}"
    model = guarded(model, where)
    check_fit(model, x, where)
    return EvaluationTarget(
        model=model,
        run=described,
        x=x,
        y=y,
        indices=datasets.official_indices(split, len(y)),
        classes=data.classes,
        data_path=request.data,
        data_sha256=data.sha256,
        batch_size=request.batch_size,
    )


def load_model(given: FinishedRun | ForeignModel, device: torch.device) -> nn.Module:
    """The model alone, in evaluation mode.

    Raises:
        ConfigError, DataError: as :func:`load`.
    """
    return load_run(given, device) if isinstance(given, FinishedRun) else _load_foreign(given, device)


def load_run(run: FinishedRun, device: torch.device) -> nn.Module:
    """The model of a finished run, in evaluation mode.

    Raises:
        DataError: its weights are missing or damaged.
    """
    return models.load_model(run.folder, run.weights, device)


def load_transfer_models(runs: Mapping[str, FinishedRun], device: torch.device) -> dict[str, TransferModel]:
    """The models that examples are transferred from: "seed" or "arch" -> model and what it is."""
    return {
        kind: TransferModel(load_run(run, device), {**identity(run.record), "model_sha256": run.sha256})
        for kind, run in runs.items()
    }


# -- a model from elsewhere --------------------------------------------------------
def _load_foreign(given: ForeignModel, device: torch.device) -> nn.Module:
    weights = given.weights
    try:
        if weights is not None:
            if not weights.is_file():
                raise DataError(f"{weights}: {_no_file(weights)}")
            weights.open("rb").close()
    except OSError as error:
        raise DataError(f"{weights}: cannot be read ({error.strerror})") from error
    model = foreign_model.build(given.factory)
    if weights is not None and (unwrapped := foreign_model.load_weights(model, weights)):
        log.info("%s: the weights were unwrapped: %s", weights, unwrapped)
    # A factory may build one of moat's own mixtures.
    return for_training(model.to(device).eval())


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "a folder, not a file"
    if path.exists():
        return "not a file but a pipe, socket or device; copy its content into a file"
    if path.is_symlink():
        return f"a symbolic link (to {os.readlink(path)}) that leads to no file"
    return "no such file"


def _described(given: ForeignModel, model: nn.Module) -> dict[str, str | None]:
    """What identifies a model that has been loaded."""
    weights = given.weights
    sha256 = foreign_model.weights_hash(model) if weights is None else hash_file(weights)
    hashes = {"model_sha256": sha256, "code_sha256": foreign_model.code_hash(given.factory)}
    return {"model": given.factory, "weights": None if weights is None else str(weights), **hashes}


# -- examples ----------------------------------------------------------------------
def _prepare(given: Preparation, out: Path) -> None:
    """Prepare a dataset that is fetched, or needs no download."""
    log.info("%s: %s is prepared there once", out, given.spec["name"])
    if not (given.source / manifest.NAME).exists():
        fetch(given.spec, given.source)
    datasets.prepare(given.spec, given.source, out, **given.parameters)


def held_out_examples(path: Path, limit: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """At most ``limit`` images and labels of the training set that were not trained with; None where there are none.

    Raises:
        DataError: there are some, but the file is damaged.
    """
    if "val" not in datasets.load(path, splits=()).metadata["counts"]:
        return None
    split = datasets.load(path, splits=("val",)).splits["val"]
    return (split.images[:limit], split.labels[:limit]) if len(split.labels) else None
