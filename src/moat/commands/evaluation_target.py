"""Loads what is evaluated: a finished run or anybody's classifier, and test examples.

Imports torch: commands import this module once they hold their GPU.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from moat.base.errors import DataError
from moat.base.files import hash_file
from moat.commands import foreign_model
from moat.commands.options import FinishedRun, ForeignModel, TargetRequest
from moat.data import datasets
from moat.evaluation.plan import TransferModel
from moat.evaluation.scoring import check_fit
from moat.evaluation.target import EvaluationTarget
from moat.kernels import for_training
from moat.models.guard import guarded
from moat.training.models import load_model
from moat.training.run_record import identity

log = logging.getLogger(__name__)


def load(request: TargetRequest, device: torch.device) -> EvaluationTarget:
    """The model on ``device`` and its examples.

    Raises:
        ConfigError: a factory that cannot be imported or called.
        DataError: weights or data that are missing, damaged, or do not fit.
    """
    if isinstance(request.model, FinishedRun):
        model, described = load_run(request.model, device), request.model.described
    else:
        model, described = _load_foreign(request.model, device)
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


def load_run(run: FinishedRun, device: torch.device) -> nn.Module:
    """The model of a finished run, in evaluation mode.

    Raises:
        DataError: its weights are missing or damaged.
    """
    return load_model(run.folder, run.weights, device)


def load_transfer_models(runs: Mapping[str, FinishedRun], device: torch.device) -> dict[str, TransferModel]:
    """The models that examples are transferred from: "seed" or "arch" -> model and what it is."""
    return {
        kind: TransferModel(load_run(run, device), {**identity(run.record), "model_sha256": run.sha256})
        for kind, run in runs.items()
    }


# -- a model from elsewhere --------------------------------------------------------
def _load_foreign(given: ForeignModel, device: torch.device) -> tuple[nn.Module, dict[str, str]]:
    if not given.weights.is_file():
        raise DataError(f"{given.weights}: {'a folder, not a file' if given.weights.is_dir() else 'no such file'}")
    model = foreign_model.build(given.factory)
    foreign_model.load_weights(model, given.weights)
    hashes = {"model_sha256": hash_file(given.weights), "code_sha256": foreign_model.code_hash(given.factory)}
    described = {"model": given.factory, "weights": str(given.weights), **hashes}
    # A factory may build one of moat's own mixtures.
    return for_training(model.to(device).eval()), described


# -- examples ----------------------------------------------------------------------
def held_out_examples(path: Path, limit: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """At most ``limit`` images and labels of the training set that were not trained with; None where there are none."""
    try:
        split = datasets.load(path, splits=("val",)).splits["val"]
    except DataError:
        return None
    return (split.images[:limit], split.labels[:limit]) if len(split.labels) else None
